"""Snapshots of what a training run depends on, cheap enough to be taken around every event.

A tensor's version counter grows whenever torch writes to it, and reading it costs nanoseconds and never waits for a
device. It does not see writes through ``parameter.data`` or NumPy, which a checksum of a sample finds.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from hooktrain.compat import VERSION, local_tensor, version_of, without_modes

__all__ = [
    "BatchSnapshot",
    "ProcessSnapshot",
    "TensorSnapshot",
    "TensorWatch",
    "batch_differences",
    "batch_snapshot",
    "process_snapshot",
    "same_batch",
]

_SAMPLED_PARAMETERS = 64
"""Parameters in a sample at most."""
_SAMPLED_ELEMENTS = 1 << 18
"""Elements in a sample, roughly, at most."""
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


_WRITTEN_OUT = 128
"""Tensors whose version counters are read by a function that names each, which takes half as long as a loop."""


class TensorSnapshot(NamedTuple):
    """Version counters around an event.

    Attributes:
        versions: those of parameters and of the optimizer's state.
        entries: the number of entries in the optimizer's state.
        grad_mode: whether torch records gradients.
        dtype: torch's default.
        gradients: the gradients themselves, None where there is none; they are compared by identity.
        gradient_versions: their version counters.
    """

    versions: Sequence[int]
    entries: int
    grad_mode: bool
    dtype: torch.dtype
    gradients: Sequence[Tensor | None]
    gradient_versions: Sequence[Any]


BatchSnapshot = tuple[list[Any], list[int]]
"""The entries of micro-batches, and their version counters, -1 where they have none."""


def batch_snapshot(batches: Sequence[Mapping[str, Any]]) -> BatchSnapshot:
    """Take a snapshot of micro-batches; the host does not wait for a device."""
    values = [*batches[0].values()] if len(batches) == 1 else [v for batch in batches for v in batch.values()]
    try:
        return values, [*map(version_of, values)]
    except (AttributeError, RuntimeError):  # entries that are no tensors, and inference tensors
        return values, [version_of(v) if type(v) is Tensor and not v.is_inference() else -1 for v in values]


def same_batch(before: BatchSnapshot, batches: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether no entry was written, replaced, added or removed since."""
    values, versions = before
    at, count = 0, len(values)
    for batch in batches:
        for value in batch.values():
            if at == count or value is not values[at] or (versions[at] >= 0 and version_of(value) != versions[at]):
                return False
            at += 1
    return at == count


def batch_differences(before: BatchSnapshot, batches: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield what differs now, as one of ``EFFECTS`` and a phrase that says what was done."""
    if [*map(id, batch_snapshot(batches)[0])] != [*map(id, before[0])]:
        yield "batch", "replaced, added or removed entries of the batch"
    elif not same_batch(before, batches):
        yield "batch", "wrote to tensors of the batch"


class TensorWatch:
    """Takes snapshots of the tensors of a run.

    Args:
        model: the model, as the strategy prepared it; with its weights sharded, where it shards them.
        optimizer: the optimizer, as the strategy prepared it.

    Attributes:
        take: takes a :class:`TensorSnapshot`, as a plain tuple; the host does not wait for a device.
        same: whether a snapshot is the same now.
    """

    take: Callable[[], tuple[Any, ...]]
    same: Callable[[tuple[Any, ...]], bool]

    def __init__(self, model: Module, optimizer: Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        found = chain(model.parameters(), *(group["params"] for group in optimizer.param_groups))
        self.parameters = list({id(p): p for p in found}.values())
        self._trained = [p for p in self.parameters if p.requires_grad]
        self.weights = [*map(local_tensor, self.parameters)]
        names = {id(p): name for name, p in model.named_parameters()}
        self.names = [names.get(id(p), f"number {n} of the optimizer") for n, p in enumerate(self.parameters)]
        self._sharded = any(local is not p for local, p in zip(self.weights, self.parameters, strict=True))
        self._fixed: list[Any] = _counted([*self.parameters, *(self.weights if self._sharded else [])])
        self._tensors: list[Any] | None = None
        self._place = 0
        self.refresh()

    def refresh(self) -> None:
        """List the tensors of the optimizer's state anew."""
        state = self.optimizer.state
        self.entries = len(state)
        tensors = [*self._fixed, *_counted(list(_tensors_in(state.values())))]
        if self._tensors is None or [*map(id, tensors)] != [*map(id, self._tensors)]:
            self._tensors = tensors
            self.take, self.same = _readers(tensors, self._trained, self.optimizer, sharded=self._sharded)

    def differences(self, before: tuple[Any, ...]) -> Iterator[tuple[str, str]]:
        """Yield what differs from a snapshot, as one of ``EFFECTS`` and a phrase that says what was done."""
        one, two = TensorSnapshot(*before), TensorSnapshot(*self.take())
        changed = [n for n, (a, b) in enumerate(zip(one.versions, two.versions, strict=False)) if a != b]
        parameters = sorted({n % len(self.parameters) for n in changed if n < len(self._fixed)})
        if parameters and len(self._fixed) % len(self.parameters) == 0:
            yield "parameters", f"wrote to {self.named(parameters)}"
        elif parameters:
            yield "parameters", f"wrote to {_some(len(parameters), 'parameter')}"
        others = [n for n in changed if n >= len(self._fixed)]
        if others:
            yield "optimizer state", f"wrote to {_some(len(others), 'tensor')} of the optimizer's state"
        if one.entries != two.entries:
            yield "optimizer state", f"left {two.entries} entries in the optimizer's state, which had {one.entries}"
        if [*map(id, one.gradients)] != [*map(id, two.gradients)]:
            yield "gradients", "made, replaced or removed gradients"
        elif one.gradient_versions != two.gradient_versions:
            yield "gradients", "wrote to gradients"
        if one.grad_mode != two.grad_mode:
            yield "grad mode", f"left the grad mode {'on' if two.grad_mode else 'off'}"
        if one.dtype != two.dtype:
            yield "default dtype", f"left torch's default dtype {two.dtype}, which was {one.dtype}"

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


def _readers(
    tensors: Sequence[Tensor], trained: Sequence[Tensor], optimizer: Optimizer, *, sharded: bool
) -> tuple[Callable[[], tuple[Any, ...]], Callable[[tuple[Any, ...]], bool]]:
    """Return ``take`` and ``same`` of a watch, written out as source where the tensors are few."""
    if sharded or len(tensors) + len(trained) > _WRITTEN_OUT:
        return _loops(tensors, trained, optimizer)
    scope: dict[str, Any] = {"state": optimizer.state, "mode": torch.is_grad_enabled, "dtype": torch.get_default_dtype}
    scope |= {f"t{n}": tensor for n, tensor in enumerate(tensors)} | {f"p{n}": p for n, p in enumerate(trained)}
    numbers = range(len(trained))
    versions = _tuple(f"t{n}.{VERSION}" for n in range(len(tensors)))
    gradients = _tuple(f"g{n}" for n in numbers)
    of_gradients = _tuple(f"g{n} is not None and g{n}.{VERSION}" for n in numbers)
    lines = [
        "def take():",
        *(f"    g{n} = p{n}.grad" for n in numbers),
        f"    return {versions}, len(state), mode(), dtype(), {gradients}, {of_gradients}",
        "def same(before):",
        f"    versions, entries, grad_mode, default, {gradients}, of_gradients = before",
        f"    return ({versions} == versions and len(state) == entries and mode() is grad_mode",
        "        and dtype() is default",
        *(f"        and p{n}.grad is g{n}" for n in numbers),
        f"        and {of_gradients} == of_gradients)",
    ]
    exec(compile("\n".join(lines), "<snapshots>", "exec"), scope)
    return scope["take"], scope["same"]


def _tuple(items: Iterable[str]) -> str:
    return f"({''.join(f'{item}, ' for item in items)})"


def _loops(
    tensors: Sequence[Tensor], trained: Sequence[Tensor], optimizer: Optimizer
) -> tuple[Callable[[], tuple[Any, ...]], Callable[[tuple[Any, ...]], bool]]:
    def versions_of(gradients: Sequence[Tensor | None]) -> list[Any]:
        there = [gradient for gradient in gradients if gradient is not None]
        return [*map(version_of, there), *(version_of(local_tensor(g)) for g in there)]

    def take() -> tuple[Any, ...]:
        gradients = [parameter.grad for parameter in trained]
        modes = torch.is_grad_enabled(), torch.get_default_dtype()
        return [*map(version_of, tensors)], len(optimizer.state), *modes, gradients, versions_of(gradients)

    def same(before: tuple[Any, ...]) -> bool:
        now = take()
        return now[:4] == before[:4] and [*map(id, now[4])] == [*map(id, before[4])] and bool(now[5] == before[5])

    return take, same


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
            now = after.values.get((kind, of), value)
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
    with without_modes():
        return ProcessSnapshot(_values(watch, device))


def _values(watch: TensorWatch, device: torch.device) -> dict[tuple[str, str], Any]:
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
    return values


_NAMES = "HUP INT QUIT ABRT USR1 USR2 PIPE ALRM TERM CHLD CONT TSTP XCPU PROF WINCH BREAK"
_SIGNALS = [getattr(signal, f"SIG{name}") for name in _NAMES.split() if f"SIG{name}" in signal.Signals.__members__]
"""Signals that programs handle."""


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
