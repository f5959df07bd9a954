"""Values of answers that travel with their tokens: whether people liked one, and the margin of a pair.

A loss that reads them has no weights of tokens, so that the data keep them as such weights, with the same store, cache
and packing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
from hooktrain_sft import Rendered

from hooktrain import DataError

__all__ = ["UNDESIRABLE", "label_of", "margin_of", "with_weight"]

UNDESIRABLE = 0.5
"""Weight of the tokens of answers that are not desirable."""


def with_weight(made: Rendered, weight: float) -> Rendered:
    """Return a rendered answer all of whose trained tokens have this weight."""
    spans = ((0, len(made.text), weight),) if weight != 1 and made.text else ()
    return attrs.evolve(made, weights=spans)


def label_of(example: Mapping[str, Any]) -> bool:
    """Return the label of an example.

    Raises:
        DataError: it has none, or one that is not true or false.
    """
    value = example.get("label")
    if isinstance(value, bool) or (isinstance(value, (int, float)) and value in (0, 1)):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    given = "missing" if value is None else repr(value)
    raise DataError(
        f"label is {given}, expected true for a desirable answer and false for another; correct the example, or name"
        " the column with `data.columns: {label: ...}`"
    )


def margin_of(example: Mapping[str, Any]) -> float:
    """Return the margin of a pair, 0 where it has none.

    Raises:
        DataError: it is no number, or a negative one.
    """
    value = example.get("margin")
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise DataError(
            f"margin is {value!r}, expected a number of 0 or more, by which the chosen answer is to be better; correct"
            " the example, or remove the column with `data.columns: {margin: null}`"
        )
    return float(value)
