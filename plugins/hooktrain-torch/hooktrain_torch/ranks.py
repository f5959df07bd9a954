"""Communication between the processes of a run."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from hooktrain import HooktrainError, World
from hooktrain_torch.compat import cpu_has_bf16, cpu_has_fp16, exchange_group_timeouts

__all__ = ["Ranks", "device_of", "native_bf16", "native_half"]


class Ranks:
    """Sums, gathers and barriers over all ranks; with one rank nothing is sent.

    Args:
        world: this process and how many there are.
        device: where collectives of tensors run: nccl for a GPU, gloo elsewhere.
        timeout: seconds that a rank waits for the others before it gives up.
        alone: whether a process group is started for a single rank too.

    Raises:
        HooktrainError: when the ranks cannot find each other.
    """

    def __init__(self, world: World, device: torch.device, *, timeout: float = 1800.0, alone: bool = False) -> None:
        self.world, self._several = world, world.world_size > 1
        self._host: Any = None
        self._timeouts: Any = None
        self._excepthook = sys.excepthook  # torch wraps it for each process group
        if not (self._several or alone):
            return
        patience = timedelta(seconds=timeout)
        # for groups that a library makes without a timeout, as DeepSpeed's engine does
        self._timeouts = exchange_group_timeouts((patience, patience))
        backend = "nccl" if device.type == "cuda" else "gloo"
        if not dist.is_initialized():
            if not self._several:
                dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
            else:
                missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
                if missing:
                    raise HooktrainError(
                        f"strategy: WORLD_SIZE is {world.world_size}, but {' and '.join(missing)} are not set, so that"
                        " the ranks cannot find each other; start them with --nproc, torchrun or another launcher"
                    )
                store = _store(world, patience)
                dist.init_process_group(
                    backend, store=store, rank=world.rank, world_size=world.world_size, timeout=patience
                )
        # counts and requests are sent between hosts, so that no device has to be synchronized
        self._host = dist.new_group(backend="gloo", timeout=patience) if device.type == "cuda" else dist.group.WORLD

    def neighbours(self, size: int) -> Any:
        """Make the process groups of ``size`` consecutive ranks each, and return this rank's; collective."""
        mine = None
        for first in range(0, self.world.world_size, size):
            group = dist.new_group(list(range(first, first + size)))
            mine = group if first <= self.world.rank < first + size else mine
        return mine

    def sum_tensor(self, value: Tensor) -> Tensor:
        """As :meth:`hooktrain.Strategy.sum_tensor`."""
        if self._several:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def sum_numbers(self, values: Sequence[float]) -> list[float]:
        """As :meth:`hooktrain.Strategy.sum_numbers`."""
        if not self._several:
            return [float(value) for value in values]
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums, group=self._host)
        return [float(value) for value in sums.tolist()]

    def gather_objects(self, value: Any) -> list[Any]:
        """As :meth:`hooktrain.Strategy.gather_objects`."""
        if not self._several:
            return [value]
        values: list[Any] = [None] * self.world.world_size
        dist.all_gather_object(values, value, group=self._host)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self._several:
            dist.barrier(group=self._host)

    def close(self) -> None:
        """Destroy the process group. References to it must be dropped before."""
        if self._timeouts is not None:
            exchange_group_timeouts(self._timeouts)
            self._timeouts = None
        if self._host is not None:
            sys.excepthook = self._excepthook
        if self._host is not None and dist.is_initialized():
            # the group's threads end only with its last reference, and one that frees a tensor while Python is shutting
            # down crashes the process
            self._host = None
            dist.destroy_process_group()
            gc.collect()


_stores: dict[tuple[str, str], Any] = {}
_begun = 0


def _store(world: World, patience: timedelta) -> Any:
    """Return the store in which ranks find each other, with keys that no earlier run of these processes has used.

    A process that runs one training after another would otherwise find the addresses of a group that no longer exists,
    and wait for it. The store itself is kept, since another one could not bind its port at once.
    """
    global _begun  # noqa: PLW0603 - it counts for the process, as the store does
    place = (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"])
    if place not in _stores:
        _stores[place], _, _ = next(iter(rendezvous("env://", world.rank, world.world_size, timeout=patience)))
    _begun += 1
    return dist.PrefixStore(f"hooktrain-{_begun}", _stores[place])  # type: ignore[attr-defined]


def device_of(wanted: str, world: World) -> torch.device:
    """Return the device that ``strategy.device`` means for this rank.

    Raises:
        HooktrainError: when there is no such device.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError as problem:
        raise HooktrainError(f"strategy.device: given '{wanted}', expected auto, cpu, cuda or cuda:N") from problem
    if device.type == "cuda" and not torch.cuda.is_available():
        raise HooktrainError(f"strategy.device: given '{wanted}', but torch finds no GPU here; write auto or cpu")
    if device.type != "cuda":
        return device
    if device.index is not None and world.world_size > 1:
        raise HooktrainError(
            f"strategy.device: given '{wanted}' for all {world.world_size} ranks; write cuda, one for each"
        )
    index, count = world.local_rank if device.index is None else device.index, torch.cuda.device_count()
    if index >= count:
        raise HooktrainError(
            f"strategy.device: rank {world.rank} would take cuda:{index}, but there are {count} GPUs here, counted from"
            " 0; start fewer processes, or write cpu"
        )
    return torch.device("cuda", index)


def native_bf16(device: torch.device) -> bool:
    """Return whether the device multiplies bf16 natively. Elsewhere emulation costs more than it saves."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return native_half(torch.bfloat16)
    return False


def native_half(dtype: torch.dtype) -> bool:
    """Return whether this processor has, and torch uses, instructions that multiply bf16 or fp16."""
    has = cpu_has_bf16() if dtype is torch.bfloat16 else cpu_has_fp16()
    return has and os.environ.get("ATEN_CPU_CAPABILITY", "") not in ("default", "avx2")
