"""What our own tests of runs on several ranks need besides the test kit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hooktrain_torch import CheckpointTensors

from hooktrain.testing import Recorder, Run

__all__ = ["alone", "assert_equal_runs", "stored_weights", "weights_at"]


def stored_weights(path: Path, kind: str = "model") -> dict[str, torch.Tensor]:
    """All tensors of a ``full`` checkpoint, put together from all ranks' files."""
    tensors = CheckpointTensors(path, kind, json.loads((path / "tensors.json").read_text())[kind])
    return {name: tensors.read(name).view(tensors.shape(name)).clone() for name in tensors.names()}


def weights_at(run: Run, step: int) -> dict[str, torch.Tensor]:
    """The weights of a run's checkpoint."""
    return stored_weights(run.folder / "checkpoints" / f"step-{step:08d}")


def alone(run_tiny: Callable[..., Any], *plugins: object, **changes: Any) -> tuple[Recorder, Any]:
    """The same run in one process."""
    recorder = Recorder()
    return recorder, run_tiny(recorder, *plugins, **{"optimizer": {"type": "sgd", "lr": 0.1}, **changes})


TIMES = ("tokens_per_second", "step_seconds")


def assert_equal_runs(run: Run, recorder: Recorder, trainer: Any, tolerance: float = 1e-6) -> None:
    """Every logged number and every weight within the tolerance."""
    assert run.status == 0, run.output
    assert len(run.metrics) == len(recorder.metrics), "one line for each step, written once"
    for mine, reference in zip(run.metrics, recorder.metrics, strict=True):
        assert mine.keys() == reference.keys()
        same = [name for name in reference if name not in TIMES]
        assert [mine[name] for name in same] == pytest.approx([reference[name] for name in same], abs=tolerance)
    for name, value in weights_at(run, trainer.global_step).items():
        torch.testing.assert_close(value, trainer.model.state_dict()[name], rtol=0, atol=tolerance)
