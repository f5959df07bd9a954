"""Mixing of sources by their weights, and ordering of sequences by length."""

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
"""Steps whose sequences are sorted together: enough for similar lengths, few enough to stay random."""


@attrs.frozen
class Mixture:
    """Counts of a weighted mixture.

    Attributes:
        rows: examples of an epoch from each source, repetitions included.
        repeated: number of repetitions.
        left_out: examples that are not used.
        tokens: tokens of an epoch.
    """

    rows: tuple[int, ...]
    repeated: int
    left_out: int
    tokens: int


def mix(
    documents: Documents, bounds: Sequence[int], weights: Sequence[float], seed: int, together: bool = False
) -> tuple[Documents, Mixture]:
    """Give each source its share of an epoch, which keeps its number of examples.

    A source with fewer examples than its share repeats them evenly; of a source with more, some are drawn. The choice
    depends on ``seed`` only.

    Args:
        documents: of all sources, in the order of the sources.
        bounds: number of each source's first example, and the end, as in ``documents.examples``.
        weights: of each source, relative to the others.
        seed: seed of the choice.
        together: whether all documents of an example come before those of its repetition.
    """
    generator = np.random.default_rng(seed)
    kept = np.unique(documents.examples)
    times = np.zeros(int(bounds[-1]), np.int64)
    shares = _apportion(len(kept), np.asarray(weights, np.float64))
    there = np.searchsorted(kept, bounds)
    for share, begin, end in zip(shares, there[:-1], there[1:], strict=True):
        examples = kept[begin:end]
        if len(examples) == 0:
            continue
        every, rest = divmod(int(share), len(examples))
        times[examples] = every
        times[examples[generator.permutation(len(examples))[:rest]]] += 1
    repeats = times[documents.examples]
    indices = np.repeat(np.arange(len(documents)), repeats)
    if together:
        repetition = np.arange(len(indices)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        indices = indices[np.lexsort((indices, repetition, documents.examples[indices]))]
    chosen = documents.select(indices)
    of_source = tuple(int(times[a:b].sum()) for a, b in itertools.pairwise(bounds))
    present = times[kept]
    return chosen, Mixture(
        of_source, int(np.maximum(present - 1, 0).sum()), int((present == 0).sum()), int(chosen.lengths.sum())
    )


def _apportion(total: int, weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return integers in proportion to ``weights`` with the sum ``total``; the largest remainders are rounded up."""
    exact = total * weights / weights.sum()
    made: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    made[np.argsort(made - exact, kind="stable")[: total - int(made.sum())]] += 1
    return made


def order_by_length(lengths: NDArray[np.int64]) -> Callable[[torch.Generator, int, int], torch.Tensor]:
    """Return a function for ``Data.order`` that gives the sequences of a step similar lengths.

    Sequences are permuted, sorted by length within each group of fifty steps, and the steps permuted again. The step
    with the longest sequence comes first, so that a run that does not fit into the memory fails early. A short last
    step stays last.
    """
    sizes = torch.from_numpy(np.ascontiguousarray(lengths))

    def order(generator: torch.Generator, per_step: int, epoch: int) -> torch.Tensor:
        permuted = torch.randperm(len(sizes), generator=generator)
        groups = [
            group[torch.argsort(sizes[group], descending=True, stable=True)]
            for group in torch.split(permuted, _GROUP * per_step)
        ]
        steps = list(torch.split(torch.cat(groups), per_step))
        last = [steps.pop()] if len(steps[-1]) < per_step else []
        shuffled = [steps[i] for i in torch.randperm(len(steps), generator=generator).tolist()]
        if shuffled:
            longest = max(range(len(shuffled)), key=lambda i: int(sizes[shuffled[i]].max()))
            shuffled.insert(0, shuffled.pop(longest))
        return torch.cat([*shuffled, *last])

    return order
