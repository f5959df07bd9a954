"""The random states of a process, as values that a checkpoint can hold."""

from __future__ import annotations

import random
from typing import Any

import torch

_numpy: Any
try:
    import numpy as _numpy
except ImportError:
    _numpy = None

__all__ = ["capture_random_state", "restore_random_state"]


def capture_random_state() -> dict[str, Any]:
    """Return the random states of torch, Python, numpy and this rank's GPU."""
    version, numbers, gauss = random.getstate()
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": [version, list(numbers), gauss]}
    if _numpy is not None:
        name, keys, *rest = _numpy.random.get_state()
        state["numpy"] = [name, keys.tolist(), *rest]
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Restore what :func:`capture_random_state` returned."""
    torch.set_rng_state(state["torch"].clone())
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    if "numpy" in state and _numpy is not None:
        _numpy.random.set_state(tuple(state["numpy"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].clone())
