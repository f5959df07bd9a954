"""Snapshots of what a training run depends on, cheap enough to be taken around every event.

A tensor's version counter grows whenever torch writes to it, and reading it costs nanoseconds and never waits for a
device. It does not see writes through ``parameter.data`` or NumPy, which a checksum of a sample finds.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from hooktrain.compat import local_tensor, version_of

__all__ = ["ProcessSnapshot", "TensorSnapshot", "TensorWatch", "process_snapshot"]

_GRAD = attrgetter("grad")
_SAMPLED_PARAMETERS = 64
"""Parameters in a sample at most."""
_SAMPLED_ELEMENTS = 1 << 18
"""Elements in a sample, roughly, at most."""
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class TensorSnapshot(NamedTuple):
    """Version counters around an event.

    Attributes:
        alive: tensors whose ``id`` is compared, kept so that no other can have it.
        numbers: version counters of parameters and optimizer state, entries of the optimizer's state, ids and version
            counters of gradients, grad mode, default dtype, and keys, ids and version counters of the batch.
    """

    alive: Any
    numbers: tuple[Any, ...]


class TensorWatch:
    """Takes snapshots of the tensors of a run.

    Args:
        model: the model, as the strategy prepared it; with its weights sharded, where it shards them.
        optimizer: the optimizer, as the strategy prepared it.
    """

    def __init__(self, model: Module, optimizer: Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        found = chain(model.parameters(), *(group["params"] for group in optimizer.param_groups))
        self.parameters = list({id(p): p for p in found}.values())
        self.trained = [p for p in self.parameters if p.requires_grad]
        self.weights = [*map(local_tensor, self.parameters)]
        names = {id(p): name for name, p in model.named_parameters()}
        self.names = [names.get(id(p), f"number {n} of the optimizer") for n, p in enumerate(self.parameters)]
        self._sharded = any(local is not p for local, p in zip(self.weights, self.parameters, strict=True))
        self._fixed: list[Any] = _counted([*self.parameters, *(self.weights if self._sharded else [])])
        self._tensors, self._entries, self._step = list(self._fixed), 0, -1
        self._place = 0

    def refresh(self, step: int) -> None:
        """List the tensors of the optimizer's state anew where they may be others: once a step."""
        state = self.optimizer.state
        if self._step != step or self._entries != len(state):
            self._step, self._entries = step, len(state)
            self._tensors = [*self._fixed, *_counted(list(_tensors_in(state.values())))]

    def take(self, batches: Sequence[Mapping[str, Any]]) -> TensorSnapshot:
        """Read the version counters; the host does not wait for a device."""
        gradients = [*map(_GRAD, self.trained)]
        there = [gradient for gradient in gradients if gradient is not None]
        if self._sharded and there:
            there += map(local_tensor, there)
        entries: list[Any] = [value for batch in batches for value in batch.values()] if batches else []
        return TensorSnapshot(
            (gradients, entries),
            (
                [*map(version_of, self._tensors)],
                len(self.optimizer.state),
                [*map(id, gradients)],
                [*map(version_of, there)],
                torch.is_grad_enabled(),
                torch.get_default_dtype(),
                [(*batch,) for batch in batches] if batches else (),
                [*map(id, entries)],
                [version_of(value) for value in entries if isinstance(value, Tensor) and not value.is_inference()],
            ),
        )

    def differences(self, before: TensorSnapshot, after: TensorSnapshot) -> Iterator[tuple[str, str]]:
        """Yield what differs, as one of ``EFFECTS`` and a phrase that says what was done."""
        one, two = before.numbers, after.numbers
        changed = [n for n, (a, b) in enumerate(zip(one[0], two[0], strict=True)) if a != b]
        parameters = {n % len(self.parameters) for n in changed if n < len(self._fixed)}
        if parameters and len(self._fixed) % len(self.parameters) == 0:
            yield "parameters", f"wrote to {self.named(sorted(parameters))}"
        elif parameters:
            yield "parameters", f"wrote to {len(parameters)} of the parameters"
        others = [n for n in changed if n >= len(self._fixed)]
        if others:
            yield "optimizer state", f"wrote to {_some(len(others), 'tensor')} of the optimizer's state"
        if one[1] != two[1]:
            yield "optimizer state", f"left {two[1]} entries in the optimizer's state, which had {one[1]}"
        if one[2] != two[2]:
            yield "gradients", "replaced or removed gradients"
        elif one[3] != two[3]:
            yield "gradients", "wrote to gradients"
        if one[4] != two[4]:
            yield "grad mode", f"left the grad mode {'on' if two[4] else 'off'}"
        if one[5] != two[5]:
            yield "default dtype", f"left torch's default dtype {two[5]}, which was {one[5]}"
        if one[6:8] != two[6:8]:
            yield "batch", "replaced, added or removed entries of the batch"
        elif one[8] != two[8]:
            yield "batch", "wrote to tensors of the batch"

    def named(self, indices: Sequence[int]) -> str:
        """Name some parameters, by their numbers in :attr:`parameters`."""
        more = f" and {len(indices) - 1} more" if len(indices) > 1 else ""
        return f"the parameter '{self.names[indices[0]]}'{more}"

    # ------------------------------------------------------------------------------------------------ the sample

    def move_sample(self) -> None:
        """Have the next checksums be of the next part of the parameters."""
        self._place += 1

    def checksums(self) -> dict[int, int]:
        """Add up the bits of a sample of the parameters, by their number; waits for the device once."""
        groups = max(1, -(-len(self.weights) // _SAMPLED_PARAMETERS))
        chosen = range(self._place % groups, len(self.weights), groups)
        chosen_weights = {n: self.weights[n] for n in chosen if _can_be_read(self.weights[n])}
        stride = max(1, sum(w.numel() for w in chosen_weights.values()) // _SAMPLED_ELEMENTS)
        first = self._place // groups % stride
        sums = {n: _sum_of_bits(weight, first, stride) for n, weight in chosen_weights.items()}
        if not sums:
            return {}
        devices = {value.device for value in sums.values()}
        if len(devices) == 1:
            return dict(zip(sums, torch.stack([*sums.values()]).tolist(), strict=True))
        return {n: int(value) for n, value in sums.items()}


def _counted(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors that have version counters."""
    return [tensor for tensor in tensors if not tensor.is_inference()]


def _tensors_in(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
            local = local_tensor(value)
            if local is not value:
                yield local
        elif isinstance(value, Mapping):
            yield from _tensors_in(value.values())
        elif isinstance(value, (list, tuple)):
            yield from _tensors_in(value)


def _can_be_read(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, torch.nn.Parameter) and tensor.device.type != "meta" and tensor.numel() > 0


@torch.no_grad()
def _sum_of_bits(tensor: Tensor, first: int, stride: int) -> Tensor:
    """Add up a tensor's values as integers, each times its number, so that no two changes cancel out. Shape ()."""
    flat = tensor.detach().reshape(-1)
    part = flat[first % min(stride, flat.numel()) :: stride].contiguous()
    integers = _INTEGERS.get(part.element_size())
    bits = (part.view(torch.int64) if integers is None else part.view(integers)).to(torch.int64)
    return (bits * torch.arange(1, len(bits) + 1, device=bits.device)).sum()


def _some(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"


# ------------------------------------------------------------------------------------------------------ the process


class ProcessSnapshot(NamedTuple):
    """What belongs to the whole process, and a sample of the weights.

    Attributes:
        values: by one of ``EFFECTS`` and what it is of.
    """

    values: Mapping[tuple[str, str], Any]

    def differences(self, after: ProcessSnapshot) -> Iterator[tuple[str, str]]:
        """Yield what differs, as one of ``EFFECTS`` and a phrase that says what was done."""
        for (kind, of), value in self.values.items():
            now = after.values[kind, of]
            if now != value and value is not None:
                yield kind, _DONE[kind].format(of=of, before=value, now=now)


_DONE = {
    "random states": "drew random numbers from {of}, or seeded it",
    "current directory": "changed the current directory from '{before}' to '{now}'",
    "signal handlers": "changed a signal handler",
    "sys.stdout": "replaced sys.stdout",
    "optimizer state": "changed {of} of the optimizer",
    "parameters": "changed {of} (which its version counter does not show)",
    "training mode": "left another {of} of the model or of its parameters than before",
}


def process_snapshot(watch: TensorWatch, device: torch.device) -> ProcessSnapshot:
    """Take a snapshot of random states, directory, signal handlers, stdout, settings and a sample of the weights.

    Waits for the device once.
    """
    numpy = sys.modules.get("numpy")
    values: dict[tuple[str, str], Any] = {
        ("random states", "Python's random"): random.getstate(),
        ("random states", "NumPy's numpy.random"): None if numpy is None else _numpy_state(numpy),
        ("random states", "torch"): torch.get_rng_state().numpy().tobytes(),
        ("random states", "torch on the device"): _device_state(device),
        ("current directory", ""): _directory(),
        ("signal handlers", ""): [signal.getsignal(number) for number in _SIGNALS],
        ("sys.stdout", ""): _Same(sys.stdout),
        ("training mode", "training"): watch.model.training,
        ("training mode", "requires_grad"): [p.requires_grad for p in watch.parameters],
        ("optimizer state", "settings such as the learning rate"): [_settings(g) for g in watch.optimizer.param_groups],
    }
    for number, checksum in watch.checksums().items():
        values["parameters", watch.named([number])] = checksum
    return ProcessSnapshot(values)


_SIGNALS = sorted(signal.valid_signals())


class _Same:
    """Compares an object by identity, and keeps it."""

    def __init__(self, of: object) -> None:
        self.of = of

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.of is self.of

    __hash__ = None  # type: ignore[assignment]


def _numpy_state(numpy: Any) -> Any:
    name, keys, *rest = numpy.random.get_state()
    return name, keys.tobytes(), *rest


def _device_state(device: torch.device) -> bytes | None:
    return torch.cuda.get_rng_state(device).numpy().tobytes() if device.type == "cuda" else None


def _directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # somebody has removed it
        return ""


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value.tolist() if isinstance(value, Tensor) else value for key, value in group.items() if key != "params"
    }
