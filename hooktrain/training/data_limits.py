"""Limits of a run's data: a part of the training set and of each evaluation set, to try a recipe quickly."""

from __future__ import annotations

from typing import Any

import attrs
import torch

from hooktrain.errors import DataError
from hooktrain.protocols import ConfigDefaults, DatasetDefaults, member
from hooktrain.recipe.model import Recipe
from hooktrain.types import Data, Dataset, World

__all__ = ["limited", "limited_rows"]


class Selection:
    """Some sequences of a data set, numbered anew.

    Args:
        dataset: all sequences.
        rows: the numbers of those that are left.
    """

    def __init__(self, dataset: Dataset, rows: list[int]) -> None:
        self.dataset, self.rows = dataset, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Any:
        return self.dataset[self.rows[row]]

    def row_name(self, row: int) -> str:
        """Return what messages call a sequence, which is its name in the complete set."""
        name: str = member(self.dataset, DatasetDefaults, "row_name")(self.rows[row])
        return name


def limited(data: Data, recipe: Recipe, world: World) -> Data:
    """Return the data with ``limit_train_batches`` and ``limit_eval_batches`` applied.

    The training sequences are drawn by the seed where the data are shuffled, and are the same in each epoch; those of
    an evaluation set are its first ones.

    Raises:
        DataError: the training sequences are a stream's, which have no numbers.
    """
    if recipe.limit_eval_batches is not None:
        size = recipe.eval_micro_batch_size or recipe.micro_batch_size
        sets = data.evaluation.items()
        limits = {name: limited_rows(recipe.limit_eval_batches, len(rows), size, recipe, world) for name, rows in sets}
        few = {name: Selection(rows, list(range(limits[name]))) for name, rows in sets}
        data = attrs.evolve(data, evaluation=few)
    if recipe.limit_train_batches is None:
        return data
    if data.loader is not None:
        raise DataError(
            "limit_train_batches: given for a streaming source, whose sequences have no numbers; write train_iters, the"
            " number of optimizer steps"
        )
    total = len(data.train)
    count = limited_rows(recipe.limit_train_batches, total, recipe.micro_batch_size, recipe, world)
    generator = torch.Generator().manual_seed(recipe.seed)
    rows = torch.randperm(total, generator=generator)[:count].tolist() if data.shuffle else list(range(count))
    mark = f" limited to {count}"
    return attrs.evolve(
        data,
        train=Selection(data.train, rows),
        order=None,
        lengths=None if data.lengths is None else data.lengths[rows],
        fingerprint=data.fingerprint + mark,
        train_fingerprint=data.train_fingerprint and data.train_fingerprint + mark,
    )


def limited_rows(limit: float, rows: int, size: int, recipe: Recipe, world: World) -> int:
    """Return how many sequences a limit leaves: micro-batches of each rank, or a share of all."""
    if isinstance(limit, float) and limit <= 1:
        return max(1, round(limit * rows))
    shared = int(member(recipe.strategy, ConfigDefaults, "sequence_parallel"))  # ranks that share a sequence
    return min(rows, int(limit) * size * max(1, world.world_size // shared))
