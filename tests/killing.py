"""Runs that are killed at a chosen moment, in processes of their own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hooktrain.testing.jobs import Job, run_jobs

CALLS = ("fsync", "replace")
"""Functions of ``os`` that make files last."""


def run(recipe: Mapping[str, Any], at: int) -> None:
    """Train, and end the process by SIGKILL at the ``at``-th call of one of ``CALLS``."""
    import torch

    from hooktrain.testing import train

    torch.set_num_threads(1)
    calls = 0

    def deadly(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments)

        return call

    for name in CALLS:
        setattr(os, name, deadly(getattr(os, name)))
    train(recipe)


def killed(recipe: Mapping[str, Any], at: int, folder: Path) -> bool:
    """Run a recipe until its ``at``-th call of one of ``CALLS``; returns whether it came to that.

    Args:
        recipe: of the run.
        at: counted from 1.
        folder: of the process.
    """
    (done,) = run_jobs(Job(f"{__name__}:run", {"recipe": dict(recipe), "at": at}, folder))
    assert done.status in (0, -signal.SIGKILL), done.output
    return done.status != 0
