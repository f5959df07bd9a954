"""Ratios of medians and their intervals."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hooktrain.bench.bootstrap import (
    Interval,
    difference_of_medians,
    ratio_of_medians,
    ratio_of_ratios,
    rounds_needed,
)


def test_medians_of_two_runs_are_one_of_three_numbers():
    # drawn from 1 and 3, a median is 1, 2 or 3, the outer ones with a probability of a quarter each
    assert ratio_of_medians([1.0, 3.0], [1.0, 1.0]) == (2.0, 1.0, 3.0)
    assert difference_of_medians([1.0, 3.0], [1.0, 1.0]) == (1.0, 0.0, 2.0)
    assert ratio_of_ratios(([4.0, 4.0], [2.0, 2.0]), ([3.0, 3.0], [3.0, 3.0])) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("pairs", [6, 10])
def test_what_slows_both_runs_of_a_pair_does_not_change_the_ratio(pairs):
    """A machine whose speed changes by 15% from pair to pair, and variants that differ by noise of 3%."""
    draw, held, widths = random.Random(7), 0, {True: 0.0, False: 0.0}
    for _ in range(150):
        speeds = [math.exp(draw.gauss(0, 0.15)) for _ in range(pairs)]
        variants = [[each * math.exp(draw.gauss(0, 0.03)) for each in speeds] for _ in range(2)]
        for paired in widths:
            _, low, high = ratio_of_medians(*variants, samples=200, paired=paired)
            widths[paired] += high - low
            held += paired and low <= 1 <= high
    assert 0.9 * 150 <= held <= 0.99 * 150, "the interval of 95% contains the truth about as often"
    assert widths[True] < widths[False] / 2.5


def test_of_few_runs_each_variant_is_drawn_independently():
    times = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert ratio_of_medians(times, times).high > 1
    assert ratio_of_medians([*times, 6.0], [*times, 6.0]) == (1, 1, 1)
    assert ratio_of_medians([*times, 6.0], [*times, 6.0], paired=False).high > 1, "of two measurements"


def test_one_run_has_no_interval():
    assert ratio_of_medians([3.0], [2.0, 2.0]) == (1.5, None, None)


def test_no_run_is_an_error():
    with pytest.raises(ValueError, match="no measurements"):
        ratio_of_medians([], [1.0])


@given(
    st.lists(st.floats(0.5, 100), min_size=2, max_size=6),
    st.lists(st.floats(0.5, 100), min_size=2, max_size=6),
    st.sampled_from([0.5, 4.0]),
)
def test_a_ratio_does_not_depend_on_the_unit(one, other, factor):
    value, low, high = ratio_of_medians(one, other, samples=200)
    assert low is not None and high is not None and min(one) / max(other) <= low <= high <= max(one) / min(other)
    scaled = ratio_of_medians([factor * number for number in one], other, samples=200)
    assert scaled == pytest.approx((factor * value, factor * low, factor * high))


def test_rounds_that_might_do():
    # half the width is twice the distance, so that four times the rounds just exclude the limit
    assert rounds_needed(Interval(1.05, 1.01, 1.15), 1.10, rounds=5) == pytest.approx(5 * 4 * 1.2, abs=1)
    assert rounds_needed(Interval(1.10, 1.0, 1.2), 1.10, rounds=5) is None
    assert rounds_needed(Interval(1.0999, 1.0, 1.2), 1.10, rounds=5) is None, "over a thousand"
