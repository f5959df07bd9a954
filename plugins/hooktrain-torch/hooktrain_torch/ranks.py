"""How the processes of a run talk to each other."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from hooktrain import HooktrainError, World

__all__ = ["Ranks", "device_of", "native_bf16"]

_DEFAULTS = ("default_pg_timeout", "default_pg_nccl_timeout")


class Ranks:
    """Sums, gathers and waits over all ranks; with one rank nothing is sent.

    Args:
        world: this process and how many there are.
        device: what collectives of tensors are computed on: nccl for a GPU, gloo elsewhere.
        timeout: seconds that a rank waits for the others before it gives up.
        alone: whether a process group is started for a single rank too.

    Raises:
        HooktrainError: when the ranks cannot find each other.
    """

    def __init__(self, world: World, device: torch.device, *, timeout: float = 1800.0, alone: bool = False) -> None:
        self.world, self._several = world, world.world_size > 1
        self._host: Any = None
        self._before: dict[str, Any] = {}
        self._excepthook = sys.excepthook  # torch puts another one around it for each process group
        if not (self._several or alone):
            return
        patience = timedelta(seconds=timeout)
        for name in _DEFAULTS:  # groups that a library makes, as DeepSpeed's engine does, ask no one how long they wait
            self._before[name] = getattr(c10d, name)
            setattr(c10d, name, patience)
        backend = "nccl" if device.type == "cuda" else "gloo"
        if not dist.is_initialized():
            if not self._several:
                dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
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
        # counts and requests travel from host to host, so that no device has to be waited for
        self._host = dist.new_group(backend="gloo", timeout=patience) if device.type == "cuda" else dist.group.WORLD

    def neighbours(self, size: int) -> Any:
        """The process group of this rank and those beside it, ``size`` of them; collective."""
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
        everyone: list[Any] = [None] * self.world.world_size
        dist.all_gather_object(everyone, value, group=self._host)
        return everyone

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self._several:
            dist.barrier(group=self._host)

    def close(self) -> None:
        """End the process group; whoever holds it lets go of it first."""
        while self._before:
            setattr(c10d, *self._before.popitem())
        if self._host is not None:
            sys.excepthook = self._excepthook
        if self._host is not None and dist.is_initialized():
            # the group's threads end only with its last holder, and one that frees a tensor while Python is shutting
            # down takes the process with it
            self._host = None
            dist.destroy_process_group()
            gc.collect()


_stores: dict[tuple[str, str], Any] = {}
_begun = 0


def _store(world: World, patience: timedelta) -> Any:
    """Where the ranks find each other, with keys that no earlier run of these processes has used.

    A process that runs one training after another would otherwise find the addresses of a group that is gone, and
    wait for it. The store itself is kept, since another one could not have its port at once.
    """
    global _begun  # noqa: PLW0603 - it counts for the process, as the store does
    place = (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"])
    if place not in _stores:
        _stores[place], _, _ = next(iter(rendezvous("env://", world.rank, world.world_size, timeout=patience)))
    _begun += 1
    return dist.PrefixStore(f"hooktrain-{_begun}", _stores[place])


def device_of(wanted: str, world: World) -> torch.device:
    """The device that a recipe's ``strategy.device`` means for this rank.

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
    """Whether the device multiplies bf16 natively: on others emulation costs more than it saves."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return native and os.environ.get("ATEN_CPU_CAPABILITY", "") not in ("default", "avx2")
    return False
