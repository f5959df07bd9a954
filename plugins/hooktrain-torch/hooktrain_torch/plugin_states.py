"""States of plugins in a checkpoint: once where they are equal on all ranks, and of each rank where they differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from hooktrain import digest
from hooktrain_torch.files import read_object
from hooktrain_torch.frozen_weights import checksum

__all__ = ["StatesByRank", "file_of", "that_differ"]


def that_differ(states: Mapping[str, Any], gather: Callable[[Any], list[Any]]) -> list[str]:
    """Return the plugins whose states are not equal on all ranks. Collective."""
    mine = {name: _fingerprint(state) for name, state in states.items()}
    first, *others = gather(mine)
    return sorted({name for other in others for name in {**first, **other} if first.get(name) != other.get(name)})


def _fingerprint(value: Any) -> Any:
    if isinstance(value, Tensor):
        return checksum(value)
    if isinstance(value, Mapping):
        return digest([[str(key), _fingerprint(item)] for key, item in value.items()])
    if isinstance(value, (list, tuple)):
        return digest([_fingerprint(item) for item in value])
    return repr(value)


def file_of(rank: int | str) -> str:
    """Return the name of the file with a rank's own states; of all such files for ``*``."""
    return f"plugins-{rank}.pt"


class StatesByRank(Sequence[Any]):
    """What a plugin's ``collect_state`` returned on each rank, read when it is asked for; None where it was nothing.

    Args:
        folder: the checkpoint.
        plugin: its name.
        ranks: how many saved.
    """

    def __init__(self, folder: Path, plugin: str, ranks: int) -> None:
        self._folder, self._plugin, self._ranks = folder, plugin, ranks

    def __len__(self) -> int:
        return self._ranks

    def __getitem__(self, rank: Any) -> Any:
        if isinstance(rank, slice):
            return [self[number] for number in range(*rank.indices(self._ranks))]
        if not -self._ranks <= rank < self._ranks:
            raise IndexError(f"rank {rank} of {self._ranks}")
        path = self._folder / file_of(rank % self._ranks)
        return read_object(path).get(self._plugin) if path.is_file() else None
