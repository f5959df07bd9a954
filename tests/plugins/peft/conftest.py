"""A tiny model, conversations, and runs of ``type: sft`` with an adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hooktrain import Trainer
from hooktrain.testing import make_llama, make_tokenizer, train

ANSWERS = ["Forty-two it is.", "What?", "The answer is the answer.", "It is forty-two, is it?", "No.", "user it is"]


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with a tiny Llama: ``tied`` and ``untied``, with a tokenizer."""
    made = {}
    tokenizer = make_tokenizer()
    for name in ("tied", "untied"):
        made[name] = tmp_path_factory.mktemp(name)
        make_llama(tokenizer, tied=name == "tied").save_pretrained(made[name])
        tokenizer.save_pretrained(made[name])
    return made


@pytest.fixture
def recipe(tmp_path: Path, bases: dict[str, Path]) -> dict[str, Any]:
    """Six packed conversations and four steps over them, in float32 on the CPU."""
    examples = tmp_path / "examples.jsonl"
    question = [{"role": "user", "content": "What is the answer?"}]
    examples.write_text(
        "".join(json.dumps({"messages": [*question, {"role": "assistant", "content": a}]}) + "\n" for a in ANSWERS)
    )
    return {
        "type": "sft",
        "run_dir": str(tmp_path / "run"),
        "micro_batch_size": 1,
        "train_iters": 4,
        "model": {"name_or_path": str(bases["tied"])},
        "data": {"sources": [str(examples)], "max_length": 96, "pack_samples": True},
        "optimizer": {"lr": 1e-2, "weight_decay": 0.0},
        "scheduler": {"type": "constant"},
        "strategy": {"dtype": "fp32", "device": "cpu"},
        "peft": {"type": "lora", "r": 4},
        "console": {"enabled": False},
    }


@pytest.fixture
def run(recipe: dict[str, Any]) -> Callable[..., Trainer]:
    """``run(plugin, ..., key=value)``: run the recipe with plugins and with top-level keys changed."""

    def go(*plugins: object, trainer: dict[str, Any] | None = None, **changes: Any) -> Trainer:
        return train({**recipe, **changes}, *plugins, **(trainer or {}))

    return go


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor | None = None) -> torch.Tensor:
    """Return the logits of every fifth token, in evaluation mode; shape (1, tokens, vocabulary)."""
    model.eval()
    ids = torch.arange(0, 270, 5)[None] if ids is None else ids
    made: torch.Tensor = model(input_ids=ids).logits.float()
    return made


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the norm of the difference, as a share of the first one's."""
    return float((one - other).norm() / one.norm())
