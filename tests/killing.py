"""Runs that are killed at a chosen moment, in processes of their own.

They are forked from a server that has imported torch and run nothing: a process that has trained holds threads, and a
fork of it may wait for ever.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from typing import Any

CALLS = ("fsync", "replace")
"""Functions of ``os`` that make files last."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["torch._dynamo", "hooktrain.testing.runs", "hooktrain_torch.checkpoint", "hooktrain_torch.strategy"]
)


def _run(recipe: Mapping[str, Any], at: int) -> None:
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


def killed(recipe: Mapping[str, Any], at: int) -> bool:
    """Run a recipe until its ``at``-th call of one of ``CALLS``; returns whether it came to that."""
    child = _context.Process(target=_run, args=(dict(recipe), at))
    child.start()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode != 0
