"""Medians, and how sure one can be of a ratio of two."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Ratio", "ratio_of_medians"]


class Ratio(NamedTuple):
    """A ratio with the interval that holds 95% of bootstrap samples; none where a side was measured only once."""

    value: float
    low: float | None
    high: float | None


def ratio_of_medians(numerator: Sequence[float], denominator: Sequence[float], samples: int = 10_000) -> Ratio:
    """Ratio of the medians of two independent lists of measurements.

    Args:
        numerator, denominator: one number for each run.
        samples: how often both lists are drawn anew, with replacement; the draws depend on nothing but the arguments.

    Raises:
        ValueError: when a list is empty.
    """
    if not numerator or not denominator:
        raise ValueError("given no measurements, expected at least one for each side")
    value = statistics.median(numerator) / statistics.median(denominator)
    if min(len(numerator), len(denominator)) < 2:
        return Ratio(value, None, None)
    draw = random.Random(0)
    drawn = sorted(
        statistics.median(draw.choices(numerator, k=len(numerator)))
        / statistics.median(draw.choices(denominator, k=len(denominator)))
        for _ in range(samples)
    )
    return Ratio(value, drawn[round(0.025 * (samples - 1))], drawn[round(0.975 * (samples - 1))])
