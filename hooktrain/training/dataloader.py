"""From rows to windows: which rows a step takes, and on which rank and in which micro-batch each of them goes.

The order of an epoch depends on the seed and the epoch only. A window is the next ``micro_batch_size *
gradient_accumulation_steps * world_size`` rows of that order, so every split of the same global batch into
micro-batches and ranks trains on the same rows, and a cursor of (epoch, rows) is all that a resume needs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from hooktrain.recipe.model import Recipe
from hooktrain.training.batch_keys import padding_batch
from hooktrain.types import Batch, Data, Dataset, World

__all__ = ["WindowLoader", "evaluation_batches"]


class WindowLoader:
    """Hands out each epoch's windows of micro-batches; the default of the hook ``make_loader``.

    Args:
        dataset: the rows.
        data: how to collate them, whether to shuffle, and with how many worker processes.
        recipe: sizes and seed.
        world: which part of each window is this rank's.
    """

    def __init__(self, dataset: Dataset, data: Data, recipe: Recipe, world: World) -> None:
        self.dataset, self.data, self.world = dataset, data, world
        self.seed = recipe.seed
        self.micro = recipe.micro_batch_size
        self.window = recipe.micro_batch_size * recipe.gradient_accumulation_steps * world.world_size

    def __len__(self) -> int:
        """Windows, which is optimizer steps, of an epoch."""
        return math.ceil(len(self.dataset) / self.window)

    def order(self, epoch: int) -> Tensor:
        """The rows of an epoch in the order in which they are trained on, shape (rows,)."""
        if not self.data.shuffle:
            return torch.arange(len(self.dataset))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        if self.data.order is not None:
            return self.data.order(generator, self.window, epoch)
        return torch.randperm(len(self.dataset), generator=generator)

    def rows_of(self, epoch: int, start: int, count: int) -> list[int]:
        """The numbers of ``count`` rows of an epoch from ``start`` on, as :class:`hooktrain.LoaderDefaults` says."""
        rows: list[int] = self.order(epoch)[start : start + count].tolist()
        return rows

    def windows(self, epoch: int, start: int = 0) -> Iterator[tuple[int, list[Batch]]]:
        """This rank's share of each window.

        Args:
            epoch: its number, from 0.
            start: global rows of the epoch that finished steps have consumed; none of them is read again.

        Yields:
            The window's rows over all ranks, and this rank's micro-batches, equally many on every rank.
        """
        order = self.order(epoch)
        shares = _Shares(order, start, self.window, self.micro, self.world)
        batches = _collated(self.dataset, self.data, shares, self.seed * 1_000_003 + epoch)
        whole = _per_rank(self.window, self.micro, self.world)
        total = len(order)
        for begin in range(start, total, self.window):
            rows = min(self.window, total - begin)
            share = whole if rows == self.window else _per_rank(rows, self.micro, self.world)
            yield rows, list(islice(batches, share))


def evaluation_batches(dataset: Dataset, data: Data, size: int, world: World) -> Iterator[Batch]:
    """This rank's micro-batches of an evaluation set: every sequence once, on one rank, then padding batches."""
    rows = len(dataset)
    return _collated(dataset, data, _Shares(torch.arange(rows), 0, max(rows, 1), size, world))


def _per_rank(rows: int, micro: int, world: World) -> int:
    return -(-rows // (micro * world.world_size))


class _Shares:
    """The row numbers of each micro-batch of this rank, window after window; an iterable that a worker can hold."""

    def __init__(self, order: Tensor, start: int, window: int, micro: int, world: World) -> None:
        self.order, self.start, self.window, self.micro, self.world = order, start, window, micro, world

    def __iter__(self) -> Iterator[list[int]]:
        return (rows for rows, _ in self.flagged())

    def flagged(self) -> Iterator[tuple[list[int], bool]]:
        """Row numbers, and whether they only fill a place."""
        first, stride = self.world.rank * self.micro, self.micro * self.world.world_size
        for rows in _windows(self.order[self.start :], self.window):
            for at in range(first, first + _per_rank(len(rows), self.micro, self.world) * stride, stride):
                share = rows[at : at + self.micro]
                yield (share, False) if share else (rows[:1], True)


def _windows(order: Tensor, size: int) -> Iterator[list[int]]:
    """Row numbers, ``size`` at a time; read out of the tensor by the thousand, since each read costs microseconds."""
    many = max(1, 4096 // size) * size
    for begin in range(0, len(order), many):
        numbers: list[int] = order[begin : begin + many].tolist()
        for at in range(0, len(numbers), size):
            yield numbers[at : at + size]


class _ByMicroBatch(torch.utils.data.Dataset[Batch]):
    """A data set whose items are micro-batches, addressed by their row numbers; for worker processes."""

    def __init__(self, dataset: Dataset, collate: Callable[[list[Any]], Batch]) -> None:
        self.dataset, self.collate = dataset, collate

    def __getitem__(self, rows: Any) -> Batch:
        return self.collate([self.dataset[row] for row in rows])


def _begin_worker(worker: int) -> None:
    """A tokenizer that used threads before the process was forked would say so in each worker, and wait for them."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _collated(dataset: Dataset, data: Data, shares: _Shares, seed: int = 0) -> Iterator[Batch]:
    if data.workers == 0:
        collate = data.collate
        for rows, fills in shares.flagged():
            batch = collate([dataset[row] for row in rows])
            yield padding_batch(batch) if fills else batch
        return
    ahead = torch.utils.data.DataLoader(
        _ByMicroBatch(dataset, data.collate),
        sampler=shares,
        batch_size=None,
        num_workers=data.workers,
        pin_memory=torch.cuda.is_available(),
        # without its own it would draw the workers' seed from the generator that dropout uses, once more at a resume
        generator=torch.Generator().manual_seed(seed + shares.world.rank),
        worker_init_fn=_begin_worker,
    )
    for batch, (_, fills) in zip(ahead, shares.flagged(), strict=True):
        yield padding_batch(batch) if fills else batch
