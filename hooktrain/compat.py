"""Private names of Python and torch that the engine uses; nothing else in it reaches for one.

Seen to work with Python 3.11 and torch 2.13. ``tests/test_compat.py`` fails when an upgrade breaks one.
"""

from __future__ import annotations

import atexit
import importlib
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

__all__ = [
    "TorchDispatchMode",
    "caller_frame",
    "exit_now",
    "fork_exec",
    "replaced_fork_exec",
    "run_exit_functions",
    "run_module_as_main",
    "storage_id",
    "tree_flatten",
    "tree_leaves",
    "tree_map",
]

_TORCH = {
    "TorchDispatchMode": "torch.utils._python_dispatch",
    **dict.fromkeys(("tree_flatten", "tree_leaves", "tree_map"), "torch.utils._pytree"),
}
"""Names of torch and their modules, imported when they are first used: a test run may import this without torch."""


def __getattr__(name: str) -> Any:
    if name not in _TORCH:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = globals()[name] = getattr(importlib.import_module(_TORCH[name]), name)
    return value


def storage_id(tensor: Tensor) -> int:
    """Return a number that tensors have in common exactly when they share memory, on ``meta`` too."""
    return int(tensor.untyped_storage()._cdata)


# ---------------------------------------------------------------------------------------------------- processes

exit_now = os._exit
"""Ends the process without cleaning up."""

fork_exec: Callable[..., int] | None = getattr(subprocess, "_fork_exec", None)
"""What ``subprocess.Popen`` starts a process with; None before Python 3.11 and on Windows."""


@contextmanager
def replaced_fork_exec(function: Callable[..., int]) -> Iterator[None]:
    """Start processes with a function in the place of :data:`fork_exec`."""
    before = vars(subprocess)["_fork_exec"]
    vars(subprocess)["_fork_exec"] = function
    try:
        yield
    finally:
        vars(subprocess)["_fork_exec"] = before


def run_module_as_main(name: str) -> None:
    """Run a module as ``python -m`` does."""
    runpy._run_module_as_main(name)  # type: ignore[attr-defined]


def run_exit_functions() -> None:
    """Wait for threads and call what is registered with atexit, as the interpreter does at its end."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()


def caller_frame(depth: int) -> FrameType:
    """Return the frame of a caller; 1 is the function that called this one."""
    return sys._getframe(depth)
