"""A tiny teacher, and runs of the loss ``distill`` with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hooktrain import Trainer
from hooktrain.testing import Recorder, save_llama


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with another Llama than the run's, of another width, with the same tokenizer."""
    return save_llama(tmp_path_factory.mktemp("teacher"), hidden_size=24, num_hidden_layers=1)


@pytest.fixture
def distill(recipe: dict[str, Any], teacher: Path) -> dict[str, Any]:
    """The recipe with the loss ``distill`` and the teacher."""
    models = {"teacher": {"type": "huggingface", "name_or_path": str(teacher)}}
    return {**recipe, "models": models, "loss": {"type": "distill"}}


Lines = list[dict[str, float]]


@pytest.fixture
def run_distill(distill: dict[str, Any]) -> Callable[..., tuple[Trainer, Lines]]:
    """``run_distill(key=value)``: run that recipe with top-level keys changed; returns the trainer and its lines."""

    def go(*plugins: object, trainer: dict[str, Any] | None = None, **changes: Any) -> tuple[Trainer, Lines]:
        from hooktrain.testing import train

        recorder = Recorder()
        return train({**distill, **changes}, recorder, *plugins, **(trainer or {})), recorder.metrics

    return go
