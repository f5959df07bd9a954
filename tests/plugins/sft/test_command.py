"""``hooktrain data``, as a user meets it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hooktrain import ExamplePreview, hookimpl
from hooktrain.cli.data import data_of, print_data
from hooktrain.testing import TinyPlugin, save_llama
from hooktrain.training.load import load


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    examples = [[turn("user", f"What is {i}?"), turn("assistant", f"It is {i}.")] for i in range(12)]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"messages": example}) + "\n" for example in [*examples, examples[3]])
    )
    (tmp_path / "held.jsonl").write_text(json.dumps({"messages": examples[0]}) + "\n")
    made = tmp_path / "recipe.yaml"
    made.write_text(
        f"type: sft\nmodel: {save_llama(tmp_path / 'model')}\n"
        "data:\n  sources: [rows.jsonl]\n  eval_sources: [held.jsonl]\n  max_length: 96\n  pack_samples: true\n"
    )
    return made


def data(recipe: Path, *words: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "hooktrain", "data", str(recipe), *words],
        cwd=recipe.parent, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_facts_for_programs(recipe: Path) -> None:
    facts = json.loads(data(recipe, "--json", "--show", "2"))
    assert facts["train"]["rows_in"] == 13 and facts["train"]["tokens_in"] == facts["train"]["tokens_kept"]
    assert sum(facts["train"]["histograms"]["tokens of a row"]["counts"]) == 13
    assert [source["cached"] for source in facts["sources"]] == [False, False]
    assert "format messages" in facts["sources"][0]["why"]
    assert [example["label"] for example in facts["shown"]] == [
        "rows.jsonl, example 0",
        "rows.jsonl, example 1",
        "held.jsonl, example 0",
    ]
    pieces = facts["shown"][0]["pieces"]
    assert "".join(text for text, _, _ in pieces).startswith("<|im_start|>user\nWhat is 0?")
    ((text, _, rule),) = [piece for piece in pieces if piece[1]]
    assert text == "It is 0.<|im_end|>" and "messages[1]" in rule
    again = json.loads(data(recipe, "--json"))
    assert [source["cached"] for source in again["sources"]] == [True, True]
    assert again["fingerprint"] == facts["fingerprint"]
    assert not (recipe.parent / "runs").exists(), "nothing was trained"


def test_text_for_people(recipe: Path) -> None:
    shown = data(recipe, "--show", "1")
    assert "«It is 0.<|im_end|>»[1]" in shown and re.search(r"\[1\] .*messages\[1\] assistant", shown)
    assert re.search(r"data\.sources: 1 .*same", shown)
    assert re.search("'held': 1 of 1 .*trained", shown)
    assert "tokens of a pack" in shown and "share trained" in shown


def test_more_examples_than_there_are(recipe: Path) -> None:
    assert data(recipe, "--show", "99").count(".jsonl, ") == 14


def test_a_plugin_previews_examples_of_its_own_data(
    tiny_recipe: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    on_terminal: Callable[..., list[str]],
) -> None:
    class Shows:
        @hookimpl
        def preview_examples(
            self, config: Any, tokenizer: Any, world: Any, hooks: Any, count: int
        ) -> list[ExamplePreview] | None:
            if type(config).__name__ != "TinyDataConfig":
                return None
            return [
                ExamplePreview(f"example {n}", [("one", False, ""), ("two " * 40, True, "it is even")], "a note")
                for n in range(count)
            ]

    recipe, host = load(tiny_recipe, plugins=[TinyPlugin(), Shows()])
    facts = data_of(recipe, host, show=2)
    assert [example["label"] for example in facts["shown"]] == ["example 0", "example 1"]
    print_data(facts)
    shown = capsys.readouterr().out
    assert f"\none«{'two ' * 40}»[1]\n" in shown and re.search(r"\[1\].*it is even", shown) and "a note" in shown
    lines = on_terminal(80, print_data, facts)
    assert f"one{'two ' * 40}[1]" in lines, "which can be copied"
    assert max(len(line) for line in lines if "example 0" in line) == 80
