"""Bounds on the work for a conversation of very many messages, which would grow with the square of their number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

__all__ = ["ALL", "sample"]

T = TypeVar("T")

ALL = 256
"""Answers up to which each one is proven by rendering the prompt before it."""
_SAMPLE = 16


def sample(items: Sequence[T], most: int = ALL) -> Sequence[T]:
    """Return all items, or 16 of more than ``most``: evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[round(number * (len(items) - 1) / (_SAMPLE - 1))] for number in range(_SAMPLE)]
