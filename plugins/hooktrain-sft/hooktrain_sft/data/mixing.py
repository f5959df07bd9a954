"""Which rows an epoch has when sources have weights, and in which order when rows of like length go together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import attrs
import numpy as np
import torch
from numpy.typing import NDArray

from hooktrain_sft.data.documents import Documents

__all__ = ["Mixture", "mix", "order_by_length"]

_GROUP = 50
"""Steps whose rows are sorted together: long enough for even lengths, short enough to stay random."""


@attrs.frozen
class Mixture:
    """What weights did to the rows of a set.

    Attributes:
        rows: rows of an epoch, repeated ones counted as often as they occur, of each source.
        repeated: how many of them are there for the second time or more.
        left_out: rows that do not occur.
        tokens: tokens of an epoch.
    """

    rows: tuple[int, ...]
    repeated: int
    left_out: int
    tokens: int


def mix(documents: Documents, bounds: Sequence[int], weights: Sequence[float], seed: int) -> tuple[Documents, Mixture]:
    """Give each source its share of an epoch, which keeps its number of rows.

    A source that has fewer rows than its share repeats them, none more than once more often than another; of one that
    has more, some are drawn. Which ones depends on ``seed`` only.

    Args:
        documents: of all sources, in the order of the sources.
        bounds: the first row number of each source, and the end, as in ``documents.rows``.
        weights: of each source, relative to the others.
        seed: of the drawing.
    """
    generator = np.random.default_rng(seed)
    kept = np.unique(documents.rows)
    times = np.zeros(int(bounds[-1]), np.int64)
    shares = _apportion(len(kept), np.asarray(weights, np.float64))
    there = np.searchsorted(kept, bounds)
    for share, begin, end in zip(shares, there[:-1], there[1:], strict=True):
        rows = kept[begin:end]
        if len(rows) == 0:
            continue
        whole, rest = divmod(int(share), len(rows))
        times[rows] = whole
        times[rows[generator.permutation(len(rows))[:rest]]] += 1
    chosen = documents.select(np.repeat(np.arange(len(documents)), times[documents.rows]))
    of_source = tuple(int(times[a:b].sum()) for a, b in itertools.pairwise(bounds))
    present = times[kept]
    return chosen, Mixture(
        of_source, int(np.maximum(present - 1, 0).sum()), int((present == 0).sum()), int(chosen.lengths.sum())
    )


def _apportion(total: int, weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Whole numbers in proportion to ``weights`` that add up to ``total``; largest remainders are rounded up."""
    exact = total * weights / weights.sum()
    made = np.floor(exact).astype(np.int64)
    made[np.argsort(made - exact, kind="stable")[: total - int(made.sum())]] += 1
    return made


def order_by_length(lengths: NDArray[np.int64]) -> Callable[[torch.Generator, int], torch.Tensor]:
    """An order for ``Data.order`` in which the rows of a step have like lengths.

    Rows are permuted, sorted by length within each run of fifty steps, and the steps permuted again. The step with the
    longest row comes first, so that a run that does not fit into the memory fails at once, and the short last step
    stays last.
    """
    sizes = torch.from_numpy(np.ascontiguousarray(lengths))

    def order(generator: torch.Generator, window: int) -> torch.Tensor:
        rows = torch.randperm(len(sizes), generator=generator)
        groups = [
            group[torch.argsort(sizes[group], descending=True, stable=True)] for group in rows.split(_GROUP * window)
        ]
        steps = list(torch.cat(groups).split(window))
        last = [steps.pop()] if len(steps[-1]) < window else []
        shuffled = [steps[i] for i in torch.randperm(len(steps), generator=generator).tolist()]
        if shuffled:
            longest = max(range(len(shuffled)), key=lambda i: int(sizes[shuffled[i]].max()))
            shuffled.insert(0, shuffled.pop(longest))
        return torch.cat([*shuffled, *last])

    return order
