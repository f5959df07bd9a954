"""Micro-batches of at most so many tokens, instead of so many rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from hooktrain import (
    Batch,
    Data,
    DataError,
    PluginInfo,
    Recipe,
    World,
    at_least,
    field,
    hookimpl,
    padding_batch,
)


@attrs.frozen(kw_only=True)
class Settings:
    """What a recipe may say under ``by_tokens``."""

    most: int = field(default=0, validator=at_least(0))
    """Tokens of a micro-batch, padding included; 0 for the usual ones."""


def _is_used(recipe: Recipe) -> bool:
    settings: Settings = recipe.settings["by_tokens"]
    return settings.most > 0


hooktrain_plugin = PluginInfo(changes_gradients=True, active_when=_is_used)


@hookimpl
def register_configs() -> Mapping[str, Mapping[str, type]]:
    return {"settings": {"by_tokens": Settings}}


@hookimpl
def make_loader(data: Data, recipe: Recipe, world: World) -> Any:
    return ByTokens(data, recipe, world, recipe.settings["by_tokens"].most)


class ByTokens:
    """Rows of similar length together; their groups are permuted."""

    def __init__(
        self, data: Data, recipe: Recipe, world: World, most: int
    ) -> None:
        if data.lengths is None:
            raise DataError(
                "by_tokens: these data do not say how long their rows are"
                " (Data.lengths); remove by_tokens.most"
            )
        self.data, self.world, self.seed = data, world, recipe.seed
        self.window = recipe.gradient_accumulation_steps * world.world_size
        self.groups = _groups(data.lengths.tolist(), most)

    def __len__(self) -> int:
        return math.ceil(len(self.groups) / self.window)

    def windows(
        self, epoch: int, start: int = 0
    ) -> Iterator[tuple[int, list[Batch]]]:
        done = 0
        for groups in self._ordered(epoch):
            sequences = sum(map(len, groups))
            done += sequences
            if done > start:  # what finished steps have read is left out
                yield sequences, list(self._share(groups))

    def rows_of(self, epoch: int, start: int, count: int) -> Sequence[int]:
        windows = self._ordered(epoch)
        rows = [
            row for groups in windows for group in groups for row in group
        ]
        return rows[start : start + count]

    def _ordered(self, epoch: int) -> Iterator[list[list[int]]]:
        """The groups of each window; the same on all ranks."""
        generator = torch.Generator().manual_seed(self.seed + epoch)
        order = torch.randperm(len(self.groups), generator=generator)
        for at in range(0, len(order), self.window):
            numbers = order[at : at + self.window].tolist()
            yield [self.groups[number] for number in numbers]

    def _share(self, groups: list[list[int]]) -> Iterator[Batch]:
        """This rank's micro-batches: as many as every other rank's."""
        train, size = self.data.train, self.world.world_size
        for at in range(0, len(groups), size):
            here = at + self.world.rank
            rows = groups[here if here < len(groups) else at]
            batch = self.data.collate([train[row] for row in rows])
            yield batch if here < len(groups) else padding_batch(batch)


def _groups(lengths: Sequence[int], most: int) -> list[list[int]]:
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        # rows are padded to the longest of a group, which is the newest
        if groups and lengths[row] * (len(groups[-1]) + 1) <= most:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups
