"""Shares of an epoch by weight, and steps of similar length."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import torch
from hooktrain_sft.data.documents import Documents
from hooktrain_sft.data.mixing import mix, order_by_length
from hypothesis import given
from hypothesis import strategies as st


def examples(count: int, first: int = 0) -> Documents:
    """Documents of two tokens that are their number."""
    return Documents.of([(np.full(2, first + i, np.int32), np.ones(2, np.bool_)) for i in range(count)])


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.01, 100), min_size=4, max_size=4),
    seed=st.integers(0, 3),
)
def test_shares(sizes: list[int], weights: list[float], seed: int) -> None:
    weights = weights[: len(sizes)]
    bounds = np.cumsum([0, *sizes]).tolist()
    mixed, mixture = mix(examples(sum(sizes)), bounds, weights, seed)
    assert len(mixed) == sum(mixture.rows) == sum(sizes), "an epoch keeps its number of examples"
    for share, weight in zip(mixture.rows, weights, strict=True):
        assert abs(share - sum(sizes) * weight / sum(weights)) < 1
    times = Counter(int(ids[0]) for ids, _ in mixed)
    for begin, end in itertools.pairwise(bounds):
        seen = [times[number] for number in range(begin, end)]
        assert max(seen) - min(seen) <= 1, "no example is repeated before every other one of its source"
    assert mixture.left_out == sum(sizes) - len(times)
    assert mixture.repeated == sum(sizes) - len(times)
    again, _ = mix(examples(sum(sizes)), bounds, weights, seed)
    assert again.digest() == mixed.digest()


def test_pieces_of_an_example_stay_together() -> None:
    documents = examples(2).cut(np.array([0, 0, 1]), np.array([0, 1, 0]), np.array([1, 1, 2]))
    mixed, mixture = mix(documents, [0, 1, 2], [1, 0.0001], 0)
    assert mixture.rows == (2, 0) and mixed.examples.tolist() == [0, 0, 0, 0] and mixture.tokens == 4


@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=300), per_step=st.integers(1, 16), seed=st.integers(0, 9)
)
def test_steps_of_similar_length(lengths: list[int], per_step: int, seed: int) -> None:
    order = order_by_length(np.array(lengths))
    made = order(torch.Generator().manual_seed(seed), per_step, 0).tolist()
    assert sorted(made) == list(range(len(lengths)))
    if len(lengths) >= per_step:
        assert max(lengths) in [lengths[number] for number in made[:per_step]], "the longest comes first"
    assert made == order(torch.Generator().manual_seed(seed), per_step, 0).tolist()


def test_lengths_within_a_step_are_closer_than_without() -> None:
    lengths = np.random.default_rng(0).integers(1, 1000, 2000)
    grouped = order_by_length(lengths)(torch.Generator().manual_seed(0), 8, 0)
    ranges = [np.ptp(lengths[step.numpy()]) for step in grouped.split(8)]
    plain = [np.ptp(lengths[step.numpy()]) for step in torch.randperm(2000).split(8)]
    assert np.mean(ranges) < 0.1 * np.mean(plain)
    other = order_by_length(lengths)(torch.Generator().manual_seed(1), 8, 0)
    assert other.tolist() != grouped.tolist()
