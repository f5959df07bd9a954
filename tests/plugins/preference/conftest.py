"""A tiny model, pairs of answers, and runs of ``type: preference``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from hooktrain import Data, Trainer, World
from hooktrain.testing import make_tokenizer, train
from hooktrain.training.load import load

PAIRS = [
    ("What is the answer?", "Forty-two it is.", "What?"),
    ("Is it?", "No.", "It is forty-two, is it?"),
    ("What is it?", "The answer is the answer.", "user it is"),
    ("No?", "It is.", "What is the answer? No."),
    ("Answer it.", "Forty-two.", "Is it the answer?"),
    ("What?", "It is forty-two.", "No, it is the user."),
    ("Is the answer it?", "It is.", "system"),
    ("It is?", "The answer it is, user.", "What what?"),
]


def messages(rows: Sequence[tuple[str, str, str]] = PAIRS) -> list[dict[str, Any]]:
    """Pairs in TRL's conversational format with a prompt."""
    return [
        {
            "prompt": [{"role": "user", "content": prompt}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
        for prompt, chosen, rejected in rows
    ]


@pytest.fixture
def recipe(tmp_path: Path, tiny_llama: Path) -> dict[str, Any]:
    """Eight pairs and three steps of four over them, in float32 on the CPU."""
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in messages()))
    return {
        "type": "preference",
        "run_dir": str(tmp_path / "run"),
        "micro_batch_size": 4,
        "train_iters": 3,
        "model": {"name_or_path": str(tiny_llama)},
        "data": {"sources": [str(path)], "max_length": 96},
        "optimizer": {"lr": 1e-3, "weight_decay": 0.0},
        "scheduler": {"type": "constant"},
        "strategy": {"dtype": "fp32", "device": "cpu"},
        "console": {"enabled": False},
    }


@pytest.fixture
def run(recipe: dict[str, Any]) -> Callable[..., Trainer]:
    """``run(plugin, ..., key=value)``: run the recipe with plugins and with top-level keys changed."""

    def go(*plugins: object, trainer: dict[str, Any] | None = None, **changes: Any) -> Trainer:
        return train({**recipe, **changes}, *plugins, **(trainer or {}))

    return go


@pytest.fixture
def prepare(recipe: dict[str, Any], tmp_path: Path) -> Callable[..., Data]:
    """``prepare(examples, key=value)``: prepare examples with keys of ``data`` changed, as a run does."""

    def go(*sets: list[Any], type: str = "preference", **data: Any) -> Data:
        sources: list[Any] = []
        for number, examples in enumerate(sets):
            path = tmp_path / f"set-{number}.jsonl"
            path.write_text("".join(json.dumps(example) + "\n" for example in examples))
            sources.append(str(path))
        data = {**recipe["data"], "sources": sources, "use_data_cache": False, **data}
        made, host = load({**recipe, "type": type, "data": data})
        found: Data = host.hooks.make_data(
            config=made.data, tokenizer=make_tokenizer(), world=World(), hooks=host.hooks, recipe=made
        )
        return found

    return go
