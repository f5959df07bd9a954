"""Tensors in a checkpoint's files: each rank writes its own shards, and an index says where each of them lies.

Readers can request any range of a tensor, so another number of ranks, or another strategy, can resume.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hooktrain import CheckpointError, Shard
from hooktrain_torch.files import read_object
from hooktrain_torch.plain_state import plain_tensor

__all__ = ["CheckpointTensors", "index_of", "tensors_of", "without_hidden"]

Part = tuple[int, int, int]
"""The rank that wrote a shard, its first element and the one after its last."""


def tensors_of(shards: Iterable[Shard]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what a rank writes: tensors by name, and for each its full shape, first element and end.

    Raises:
        CheckpointError: when a rank has two shards of one tensor.
        NotPlainError: when a shard cannot be written as a plain tensor.
    """
    tensors: dict[str, Tensor] = {}
    places: dict[str, Any] = {}
    for shard in shards:
        if shard.name in tensors:
            raise CheckpointError(f"{shard.name}: the strategy returned two shards of it on one rank, expected one")
        tensors[shard.name] = plain_tensor(shard.name, shard.values)
        places[shard.name] = [list(shard.shape), shard.start, shard.start + shard.values.numel()]
    return tensors, places


def without_hidden(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file, copied where the memory that they lie in holds much that none of them shows.

    A file holds that memory as a whole, and once for all tensors in it, such as the shards of a flat vector.
    """
    shown: Counter[tuple[torch.device, int]] = Counter()
    strided = {name: value for name, value in tensors.items() if value.layout is torch.strided and not value.is_meta}
    for value in strided.values():
        shown[value.device, value.untyped_storage().data_ptr()] += value.numel() * value.element_size()

    def hides(value: Tensor) -> bool:
        memory = value.untyped_storage()
        return memory.nbytes() - shown[value.device, memory.data_ptr()] > memory.nbytes() // 8

    return {
        name: value.to("cpu", copy=True) if name in strided and hides(value) else value
        for name, value in tensors.items()
    }


def index_of(places: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge the places of all ranks' shards into an index.

    Args:
        places: of each rank, what :func:`tensors_of` returned.

    Returns:
        For each tensor its shape, and for each shard the rank, the first element and the one after the last.

    Raises:
        CheckpointError: when elements of a tensor are missing or there twice.
    """
    made: dict[str, Any] = {}
    for rank, mine in enumerate(places):
        for name, (shape, start, stop) in mine.items():
            entry = made.setdefault(name, {"shape": shape, "parts": []})
            if entry["shape"] != shape:
                raise CheckpointError(f"{name}: rank {rank} has the shape {shape}, expected {entry['shape']}")
            if stop > start or not any(part[2] > part[1] for part in entry["parts"]):
                entry["parts"].append([rank, start, stop])
    for name, entry in made.items():
        entry["parts"].sort(key=lambda part: (part[1], part[2]))
        at = 0
        for _, start, stop in entry["parts"]:
            if start != at:
                break
            at = stop
        if at != torch.Size(entry["shape"]).numel():
            raise CheckpointError(
                f"{name}: the strategy returned the shards {[part[1:] for part in entry['parts']]} of the shape"
                f" {entry['shape']}, expected each element once; report this as a bug of the strategy"
            )
    return made


class CheckpointTensors:
    """The :class:`hooktrain.StoredTensors` of a checkpoint.

    Args:
        folder: the checkpoint.
        kind: ``model`` or ``optimizer``, with which the files' names begin.
        entries: what :func:`index_of` returned.
    """

    def __init__(self, folder: Path, kind: str, entries: Mapping[str, Any]) -> None:
        self._folder, self._kind, self._entries = folder, kind, entries
        self._files: dict[int, dict[str, Tensor]] = {}

    def names(self) -> Collection[str]:
        return self._entries.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._entries[name]["shape"])

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        entry = self._entries[name]
        parts: Sequence[Part] = entry["parts"]
        stop = torch.Size(entry["shape"]).numel() if stop is None else stop
        first = max(0, bisect.bisect_right([part[1] for part in parts], start) - 1)
        found: list[Tensor] = []
        for rank, begin, end in parts[first:]:
            if begin >= stop and found:
                break
            values = self._of(rank)[name].reshape(-1)
            found.append(values[max(start - begin, 0) : min(stop, end) - begin])
        return found[0] if len(found) == 1 else torch.cat(found)

    def _of(self, rank: int) -> dict[str, Tensor]:
        if rank not in self._files:
            self._files[rank] = read_object(self._folder / f"{self._kind}-{int(rank)}.pt")
        return self._files[rank]
