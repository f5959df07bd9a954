"""Device synchronization: calls that bring values of a tensor, or their number, to the host.

They are counted in two ways. :class:`DeviceSyncs` costs nothing but in these calls themselves, so that it may stay on
for a whole run. The conformance kit has a mode that sees each operation of torch, since it must put values in where
there are none; it makes a small model take twice as long.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from hooktrain.compat import caller_frame

__all__ = ["DEVICE_SYNCS", "DeviceSyncs"]

DEVICE_SYNCS: Mapping[str, str] = {
    **dict.fromkeys(("item", "tolist", "_local_scalar_dense"), "reads a value"),
    **dict.fromkeys(("__bool__", "__float__", "__int__", "__index__", "__complex__"), "reads a value"),
    **{name: f"compares values ({name})" for name in ("equal", "allclose", "is_nonzero")},
    **{name: f"asks how many values there are ({name})" for name in ("nonzero", "masked_select", "unique")},
    **{name: f"asks how many values there are ({name})" for name in ("_unique2", "unique_dim")},
    **dict.fromkeys(("cpu", "numpy", "to", "copy_", "_to_copy"), "copies a tensor to the host"),
    "synchronize": "waits for the device (synchronize)",
}
"""Names of calls that wait, those of Python and those of ATen, and what each does."""

_OF_TORCH = ("equal", "allclose", "is_nonzero", "nonzero", "masked_select", "unique")
_OF_TENSORS = [name for name in DEVICE_SYNCS if name not in ("unique", "synchronize") and hasattr(Tensor, name)]
_ACTIVE: list[DeviceSyncs] = []


class DeviceSyncs:
    """Tells of each wait between :meth:`begin` and :meth:`end`.

    On a CUDA device these are what torch's debug mode for synchronization reports, whoever causes them. Elsewhere they
    are calls from Python that read a tensor of the device. On a processor, where nothing waits, each call counts that
    would wait if its tensor lay on a device: an upper bound, as tensors that stay on the host in any case look alike.
    (The steps that torch's optimizers count are known to stay there.)

    Args:
        seen: called for each wait with what is done, in the thread that waits.
        device: where the model computes.
    """

    def __init__(self, seen: Callable[[str], None], device: torch.device | str = "cpu") -> None:
        self.seen = seen
        self.by_torch = torch.device(device).type == "cuda"
        self.read_from = "" if self.by_torch else torch.device(device).type
        self._show: Any = None

    def begin(self) -> None:
        """Listen."""
        if not _ACTIVE:
            _replace()
        _ACTIVE.append(self)
        if self.by_torch:
            warnings.filterwarnings("always", message=".*synchronizing CUDA operation")
            self._show, warnings.showwarning = warnings.showwarning, self._told  # type: ignore[assignment]
            torch.cuda.set_sync_debug_mode("warn")

    def end(self) -> None:
        """Listen no more; does nothing when it does not."""
        if self not in _ACTIVE:
            return
        _ACTIVE.remove(self)
        if not _ACTIVE:
            _put_back()
        if self._show is not None:
            torch.cuda.set_sync_debug_mode("default")
            self._show, warnings.showwarning = None, self._show

    def _told(self, message: Warning | str, *more: Any) -> None:
        """Called in the place of ``warnings.showwarning``."""
        if "synchronizing CUDA operation" in str(message):
            self.seen("waits for the device")
        elif self._show is not None:
            self._show(message, *more)


# ------------------------------------------------------------------------------------------------ calls from Python

_REPLACED: list[tuple[Any, str, Any]] = []
"""Owner, name, and what the owner had there of its own, or None where it had inherited it."""


def _calls() -> Iterator[tuple[Any, str, Callable[[Callable[..., Any], str], Any]]]:
    """The owner and the name of each call, and what takes its place."""
    for name in _OF_TENSORS:
        yield Tensor, name, _moving if name in ("to", "copy_") else _reading
    for name in _OF_TORCH:
        yield torch, name, _reading
    for owner in (torch.cuda, torch.cuda.Event, torch.cuda.Stream):
        yield owner, "synchronize", _waiting


def _replace() -> None:
    for owner, name, replacement in _calls():
        _REPLACED.append((owner, name, vars(owner).get(name)))
        setattr(owner, name, replacement(getattr(owner, name), DEVICE_SYNCS[name]))


def _put_back() -> None:
    for owner, name, before in _REPLACED:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
    _REPLACED.clear()


def _reading(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **more: Any) -> Any:
        tensor = arguments[0] if arguments else None
        if isinstance(tensor, Tensor) and not _counts_steps(tensor, caller_frame(2).f_globals):
            for each in _ACTIVE:
                if tensor.device.type == each.read_from:
                    each.seen(what)
        return function(*arguments, **more)

    return call


def _counts_steps(tensor: Tensor, caller: Mapping[str, Any]) -> bool:
    """Whether an optimizer of torch reads how many steps it has made, which it keeps on the host."""
    return tensor.device.type == "cpu" and caller.get("__name__") == "torch.optim.optimizer"


def _moving(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    """A copy, which waits where it leads from the device to the host."""

    @functools.wraps(function)
    def call(*arguments: Any, **more: Any) -> Any:
        result = function(*arguments, **more)
        if result.device.type == "cpu":
            for each in _ACTIVE:
                if any(isinstance(one, Tensor) and one.device.type == each.read_from != "cpu" for one in arguments):
                    each.seen(what)
        return result

    return call


def _waiting(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **more: Any) -> Any:
        for each in _ACTIVE:
            each.seen(what)
        return function(*arguments, **more)

    return call
