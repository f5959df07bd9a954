"""The packages in ``tests/packages``, and results of runs with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from hooktrain.testing.subprocess_runs import Run
from tests.launching import TIMES

__all__ = ["BAD", "GOOD", "done", "numbers", "plugin_states", "refused", "step"]

GOOD = ("beacon", "beacon-host", "confidence", "ema", "lion", "robust-loss", "transcripts")
"""Packages that work together."""
BAD = ("broken", "older", "rivals")
"""Packages that do not work, clash, or were written for other hooks."""


def done(run: Run) -> Run:
    assert run.status == 0, run.output
    return run


def refused(run: Run) -> str:
    """Return the output of a command that has failed without a traceback."""
    assert run.status == 1 and "Traceback" not in run.output, run.output
    return run.output


def numbers(lines: Iterable[Mapping[str, float]]) -> list[dict[str, float]]:
    """Return log lines without times."""
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def plugin_states(path: Path) -> Any:
    """Those of rank 0, which has files of its own for what differs by rank."""
    own = path / "plugins-0.pt"
    found = torch.load(path / "parts.pt", weights_only=True)["plugins"]
    return found | (torch.load(own, weights_only=True) if own.is_file() else {})


def step(run: Run, number: int) -> Path:
    return run.folder / "checkpoints" / f"step-{number:08d}"
