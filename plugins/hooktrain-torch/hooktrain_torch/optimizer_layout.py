"""Optimizer state that is not laid out as its parameter is: other shapes, other types, and values that differ by rank.

A checkpoint holds plain tensors. Next to them it notes the layout: how to make of them again what the optimizer had.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hooktrain import HooktrainError, Shard, StoredTensors
from hooktrain_torch.sharded import is_sharded

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["key_of", "read_rows", "restored", "saved", "shard_of"]

Layout = dict[str, Any]
"""``kind``: ``placed`` (a DTensor, sharded along ``dim``), ``local`` (this rank's rows of a plain tensor) or ``ranks``
(a plain tensor of each of ``ranks`` ranks). Empty where it is that of the parameter."""


def saved(name: str, value: Any, parameter: Tensor) -> tuple[Shard | None, Layout] | None:
    """Return what this rank writes of an entry of the optimizer's state, and its layout.

    Args:
        name: ``<parameter>/<key>``.
        value: the entry.
        parameter: that it belongs to.

    Returns:
        The shard, or None where another rank writes all of it, with the layout; None where the entry is a plain value
        that is equal on all ranks.

    Raises:
        HooktrainError: tensors that may differ by rank are inside another value.
    """
    if not isinstance(value, Tensor):
        if is_sharded(parameter) and _holds_tensors(value):
            raise HooktrainError(
                f"optimizer: its state {name} is a {type(value).__name__} with tensors in it, which may differ by rank,"
                " expected tensors, numbers or text; keep each tensor under a key of its own"
            )
        return None
    if is_sharded(value):
        is_like = is_sharded(parameter) and (value.shape, value.placements) == (parameter.shape, parameter.placements)
        return (shard_of(name, value), {}) if is_like else _placed(name, value)
    if not is_sharded(parameter):
        return (shard_of(name, value), {}) if value.shape == parameter.shape else None
    start, stop = _local_rows(parameter)
    if value.shape == (stop - start, *parameter.shape[1:]):
        first = start * parameter.shape[1:].numel()
        return Shard(name, tuple(parameter.shape), first, value), {"kind": "local"}
    if value.numel() <= 1:
        return None
    mesh = parameter.device_mesh
    own = Shard(f"{name}@{mesh.get_local_rank()}", tuple(value.shape), 0, value)
    return own, {"kind": "ranks", "ranks": mesh.size()}


def _placed(name: str, value: DTensor) -> tuple[Shard | None, Layout]:
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor import Shard as Sharded

    (placement,) = value.placements
    dim = placement.dim if isinstance(placement, Sharded) else None
    layout = {"kind": "placed", "dim": dim}
    if dim == 0:
        return shard_of(name, value), layout
    whole = value.redistribute(placements=[Replicate()]).to_local()
    is_first = value.device_mesh.get_local_rank() == 0
    return (Shard(name, tuple(value.shape), 0, whole) if is_first else None), layout


def key_of(stored: str, layouts: Mapping[str, Layout]) -> str:
    """Return the key of an entry from that under which it is stored, which ends with the rank where each has its own.

    Args:
        stored: the key.
        layouts: of the parameter's entries, by key.
    """
    key, _, _ = stored.rpartition("@")
    return key if layouts.get(key, {}).get("kind") == "ranks" else stored


def restored(stored: StoredTensors, name: str, layout: Mapping[str, Any], parameter: Tensor) -> Tensor:
    """Return an entry as the optimizer had it, for this number of ranks.

    Args:
        stored: the optimizer's tensors.
        name: ``<parameter>/<key>``.
        layout: what :func:`saved` returned.
        parameter: that it belongs to.

    Raises:
        ValueError: the entry differs by rank, and there is another number of ranks.
    """
    if layout["kind"] == "ranks":
        return _of_rank(stored, name, int(layout["ranks"]), parameter)
    if layout["kind"] == "local":
        found = read_rows(stored, name, parameter)
        return found.to_local() if is_sharded(found) else found
    whole = stored.read(name).view(stored.shape(name))
    if not is_sharded(parameter):
        return whole
    from torch.distributed.tensor import Replicate, distribute_tensor
    from torch.distributed.tensor import Shard as Sharded

    placement = Replicate() if layout["dim"] is None else Sharded(layout["dim"])
    whole = whole.to(parameter.device)
    return distribute_tensor(whole, parameter.device_mesh, [placement], src_data_rank=None)


def _of_rank(stored: StoredTensors, name: str, ranks: int, parameter: Tensor) -> Tensor:
    def read(rank: int) -> Tensor:
        own = f"{name}@{rank}"
        return stored.read(own).view(stored.shape(own))

    if is_sharded(parameter) and parameter.device_mesh.size() == ranks:
        return read(parameter.device_mesh.get_local_rank())
    first, *others = map(read, range(ranks))
    if not all(torch.equal(first, other) for other in others):
        raise ValueError(f"the optimizer's {name} differs by rank and was saved on {ranks}; resume on {ranks} ranks")
    return first


def shard_of(name: str, tensor: Tensor) -> Shard:
    """Return this rank's rows of a tensor, or all of one that is not sharded."""
    if not is_sharded(tensor):
        return Shard(name, tuple(tensor.shape), 0, tensor)
    start, _ = _local_rows(tensor)
    return Shard(name, tuple(tensor.shape), start * tensor.shape[1:].numel(), tensor.to_local())


def read_rows(stored: StoredTensors, name: str, like: Tensor) -> Tensor:
    """Read a stored tensor, or this rank's rows of it where ``like`` is sharded."""
    shape = stored.shape(name)
    if not is_sharded(like):
        return stored.read(name).view(shape)
    if shape != tuple(like.shape):
        raise ValueError(f"{name} has the shape {shape}, expected {tuple(like.shape)}")
    (start, stop), row = _local_rows(like), like.shape[1:].numel()
    local = stored.read(name, start * row, stop * row).view(stop - start, *shape[1:])
    return type(like).from_local(
        local.to(like.device),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def _local_rows(tensor: DTensor) -> tuple[int, int]:
    """Return the first row of a tensor that this rank holds, and the one after its last; rows are split evenly."""
    rows, ranks = tensor.shape[0], tensor.device_mesh.size()
    each = -(-rows // ranks)
    start = min(tensor.device_mesh.get_local_rank() * each, rows)
    return start, min(start + each, rows)


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() > 1
    if isinstance(value, Mapping):
        return any(map(_holds_tensors, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_holds_tensors, value))
