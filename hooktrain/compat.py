"""Private names of Python, torch, pluggy and attrs that the engine uses; nothing else in it reaches for one.

Seen to work with Python 3.11, torch 2.13, pluggy 1.7 and attrs 26.1; ``tests/test_compat.py`` fails when an upgrade
breaks one.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import atexit
import importlib
import inspect
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from operator import attrgetter
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

__all__ = [
    "FakeTensorMode",
    "TorchDispatchMode",
    "VERSION",
    "call_exit_functions",
    "caller_frame",
    "code_of",
    "exit_now",
    "factory_of",
    "files_of",
    "fork_exec",
    "function_of",
    "has_entries",
    "inner_tensors",
    "is_data_frame",
    "is_table",
    "local_tensor",
    "module_name_of",
    "module_of",
    "name_of",
    "origin_of",
    "own_tensors",
    "plain_value",
    "remove_from_hook",
    "reorder_hook",
    "replaced_fork_exec",
    "rules_of",
    "run_exit_functions",
    "run_module_as_main",
    "signal_handler",
    "storage_id",
    "thread_frames",
    "tree_flatten",
    "tree_leaves",
    "tree_map",
    "validators_in",
    "version_of",
    "wait_for_threads",
    "without_modes",
]

_TORCH = {
    "FakeTensorMode": "torch._subclasses.fake_tensor",
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


VERSION = "_version"
version_of: Callable[[Tensor], int] = attrgetter(VERSION)
"""Reads a tensor's version counter, which grows with every write by torch; inference tensors have none."""


def local_tensor(tensor: Tensor) -> Tensor:
    """Return the tensor that holds this rank's shard of a DTensor; any other tensor itself."""
    found: Tensor = getattr(tensor, "_local_tensor", tensor)
    return found


def without_modes() -> AbstractContextManager[Any]:
    """Have no TorchDispatchMode of anybody see what torch does inside."""
    from torch.utils._python_dispatch import _disable_current_modes

    return _disable_current_modes()


def own_tensors(module: Any) -> tuple[dict[str, Tensor | None], dict[str, Tensor | None]]:
    """Return the parameters and the buffers of a module without its children, to be replaced in place."""
    return module._parameters, module._buffers


# ------------------------------------------------------------------------------------------------------- pluggy


def reorder_hook(caller: Any, key: Callable[[Any], Any]) -> None:
    """Sort the implementations of a hook; pluggy calls from the end of the list."""
    caller._hookimpls.sort(key=key)


def remove_from_hook(caller: Any, plugin: object) -> None:
    """Remove a plugin from one hook; in public pluggy removes it from all of them."""
    caller._remove_plugin(plugin)


# ---------------------------------------------------------------------------------------------------- processes

exit_now = os._exit
"""Ends the process without cleaning up."""

signal_handler: Callable[[int], Any] = _signal.getsignal
"""What Python calls at a signal; ``signal.getsignal`` takes 20 times as long, since it looks for an enum's member."""

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


def wait_for_threads() -> None:
    """Wait for threads that are no daemons, as the interpreter does at its end."""
    threading._shutdown()  # type: ignore[attr-defined]


def call_exit_functions() -> None:
    """Call what is registered with atexit, as the interpreter does at its end."""
    atexit._run_exitfuncs()


def run_exit_functions() -> None:
    """Wait for threads and call what is registered with atexit, as the interpreter does at its end."""
    wait_for_threads()
    call_exit_functions()


def thread_frames() -> dict[int, FrameType]:
    """Return the innermost frame of each thread by its number."""
    return sys._current_frames()


def caller_frame(depth: int) -> FrameType:
    """Return the frame of a caller; 1 is the function that called this one."""
    return sys._getframe(depth)


# ------------------------------------------------------------------------------------- what objects have, by its name


def code_of(function: Any) -> Any:
    """Return the code object of a function, unwrapped; None for another callable."""
    return getattr(inspect.unwrap(function), "__code__", None)


def inner_tensors(tensor: Any) -> list[Any]:
    """Return the tensors that a subclass of Tensor wraps, such as a quantized weight's; none of a plain tensor."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    return [] if flatten is None else [getattr(tensor, name) for name in flatten()[0]]


def function_of(attribute: Any) -> Any:
    """Return the function of a bound, static or class method, and anything else as it is."""
    return getattr(attribute, "__func__", attribute)


def name_of(value: Any) -> str:
    """Return the qualified name of a function or class, and that of the class of anything else."""
    return str(getattr(value, "__qualname__", None) or type(value).__name__)


def module_name_of(namespace: Any) -> str:
    """Return the name of a module, and that of the class of anything else."""
    return str(getattr(namespace, "__name__", type(namespace).__name__))


def module_of(value: Any) -> str:
    """Return the name of the module in which a function or class was defined, or nothing."""
    return str(getattr(value, "__module__", None) or "")


def files_of(module: Any) -> tuple[list[str], str | None]:
    """Return the folders of a package, and the file of a module where it has one."""
    return list(getattr(module, "__path__", ())), getattr(module, "__file__", None)


def origin_of(model: Any) -> str | None:
    """Return the name or folder that a model or its config says that it was loaded from."""
    for holder in (model, getattr(model, "config", None)):
        found = getattr(holder, "name_or_path", None)
        if isinstance(found, str) and found:
            return found
    return None


def is_data_frame(rows: Any) -> bool:
    """Return whether examples are a pandas frame, whose iterator yields columns."""
    return hasattr(rows, "iloc")


def is_table(rows: Any) -> bool:
    """Return whether examples are a ``datasets.Dataset``, which is fast in batches only."""
    return hasattr(rows, "features") and hasattr(rows, "iter")


def has_entries(rows: Any) -> bool:
    """Return whether an object has entries that can be read by number."""
    return hasattr(rows, "__getitem__")


def plain_value(value: Any) -> Any:
    """Return an array, tensor, date or time as JSON can hold it; NotImplemented for anything else."""
    for convert in ("tolist", "isoformat"):
        if hasattr(value, convert):
            return getattr(value, convert)()
    return NotImplemented


def validators_in(validator: Any) -> tuple[Any, ...]:
    """Return the validators that attrs holds as one."""
    return tuple(getattr(validator, "_validators", (validator,)))


def factory_of(default: Any) -> Callable[[], Any] | None:
    """Return the function that makes a default, where attrs has one."""
    found: Callable[[], Any] | None = getattr(default, "factory", None)
    return found


def rules_of(validator: Any) -> Any:
    """Return what a validator says of itself in the terms of JSON Schema, or None."""
    return getattr(validator, "schema", None)
