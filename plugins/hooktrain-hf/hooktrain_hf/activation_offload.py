"""Activations that wait for the backward pass in the memory of the host.

Each tensor is copied to pinned memory on a stream of its own, while the next block computes. In the backward pass the
tensor of the block before is fetched while a block computes, so that copies and computation overlap both ways.
"""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = ["HostActivations"]

_cuda: Any = torch.cuda
_LEAST = 2**16
"""Bytes from which a copy is worth it: smaller tensors stay."""


class HostActivations:
    """Moves what autograd saves inside :meth:`hooks` to the host.

    Args:
        device_type: of the tensors to move; others stay where they are.
        least: bytes from which a tensor is moved.

    Attributes:
        moved: bytes that the calls so far have moved.
        stayed: bytes that stayed on their device.
    """

    def __init__(self, device_type: str = "cuda", least: int = _LEAST) -> None:
        self._device_type, self._least = device_type, least
        self._streams: dict[torch.device, Any] = {}
        self._last: weakref.ref[_Moved] | None = None
        self.moved = self.stayed = 0

    def hooks(self) -> AbstractContextManager[Any]:
        """Return a context in which tensors that autograd saves are moved."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def _pack(self, tensor: Tensor) -> Any:
        size = tensor.numel() * tensor.element_size()
        if tensor.device.type != self._device_type or size < self._least:
            self.stayed += size
            return tensor
        self.moved += size
        with self._copying(tensor.device):
            made = _Moved(tensor, self._last)
        self._last = weakref.ref(made)
        return made

    def _unpack(self, packed: Any) -> Tensor:
        if not isinstance(packed, _Moved):
            kept: Tensor = packed
            return kept
        self._fetch(packed)
        made = packed.take()
        if (before := packed.before()) is not None:
            self._fetch(before)
        return made

    def _fetch(self, moved: _Moved) -> None:
        if moved.back is None:
            with self._copying(moved.device):
                moved.fetch()

    def _copying(self, device: torch.device) -> AbstractContextManager[Any]:
        """Return the context in which copies are made: a stream that waits for what has been computed so far."""
        if device.type != "cuda":
            return nullcontext()
        if device not in self._streams:
            self._streams[device] = _cuda.Stream(device)
        stream = self._streams[device]
        stream.wait_stream(_cuda.current_stream(device))
        made: AbstractContextManager[Any] = _cuda.stream(stream)
        return made


class _Moved:
    """One tensor on the host; made, and fetched, in the context of the copies.

    Args:
        tensor: on its device.
        before: the tensor that was moved before it, and will be needed after it.
    """

    def __init__(self, tensor: Tensor, before: weakref.ref[_Moved] | None) -> None:
        self.device, self.back, self._before = tensor.device, None, before
        on_gpu = tensor.device.type == "cuda"
        self.host = torch.empty_like(tensor, device="cpu", pin_memory=on_gpu)
        self.host.copy_(tensor, non_blocking=True)
        self._ready: Any = None
        if on_gpu:
            tensor.record_stream(_cuda.current_stream(tensor.device))  # its memory is free once it is copied

    back: Tensor | None

    def before(self) -> _Moved | None:
        """Return the tensor that was moved before, while the backward pass has yet to use it."""
        return None if self._before is None else self._before()

    def fetch(self) -> None:
        """Begin to copy the tensor back."""
        self.back = self.host.to(self.device, non_blocking=True, copy=True)
        if self.device.type == "cuda":
            self._ready = _cuda.Event()
            self._ready.record()

    def take(self) -> Tensor:
        """Return the tensor, for which what computes now waits on its device."""
        made, self.back = self.back, None  # autograd may ask again, where a graph is kept
        assert made is not None, "it has been fetched"
        if self._ready is not None:
            stream = _cuda.current_stream(self.device)
            stream.wait_event(self._ready)
            made.record_stream(stream)
        return made
