"""Whole runs of ``type: sft`` on a tiny model and a few conversations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hooktrain import Trainer
from hooktrain.testing import train
from tests.tiny_llama import make_tokenizer, tiny_llama

ANSWERS = ["Forty-two it is.", "What?", "The answer is the answer.", "It is forty-two, is it?", "No.", "user it is"]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama and its tokenizer."""
    folder, tokenizer = tmp_path_factory.mktemp("base"), make_tokenizer()
    tiny_llama(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(tmp_path: Path, base: Path) -> dict[str, Any]:
    """Six packed conversations, two of them a row, and four steps over them, in float32 on the CPU."""
    rows = tmp_path / "rows.jsonl"
    said = [{"role": "user", "content": "What is the answer?"}]
    lines = [json.dumps({"messages": [*said, {"role": "assistant", "content": answer}]}) for answer in ANSWERS]
    rows.write_text("\n".join(lines))
    return {
        "type": "sft",
        "run_dir": str(tmp_path / "run"),
        "train_iters": 4,
        "model": {"name_or_path": str(base)},
        "data": {"sources": [str(rows)], "eval_sources": [str(rows)], "max_length": 96, "pack_samples": True},
        "optimizer": {"lr": 1e-2},
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
