"""A rendered example: text or ids, with the spans that are trained."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from hooktrain import DataError
from hooktrain_sft.chat.template_trace import Span
from hooktrain_sft.config import is_weight

__all__ = ["Rendered", "WeightedSpan", "fitting_note", "fitting_rules", "product_of"]

WeightedSpan = tuple[int, int, float]
"""Start and end of a piece of text, in characters, the end excluded, and a weight."""


@attrs.frozen(eq=False)
class Rendered:
    """An example as text for the tokenizer, or as ids.

    Attributes:
        text: all of the text; only ``before`` and ``after`` are added to its tokens.
        spans: the parts of ``text`` that are trained, in characters, in order; a token is trained when it lies
            within one of them.
        before: ids before the text, not trained.
        after: ids after the text, trained.
        rules: for each span its message and the rule that proved it, such as
            ``messages[1] assistant: all after the generation prompt``; for ids, one for all of them. May be empty.
        notes: facts for the report, such as ``messages[3] assistant: empty, not trained``.
        ids: the tokens of an example that is tokenized already, shape (tokens,); then ``text``, ``spans``,
            ``before`` and ``after`` are empty.
        mask: the trained ones of ``ids``, or in floating point their weights, shape (tokens,).
        unused: columns and fields of messages, as ``messages.name``, that are not rendered, for the report.
        plain: the parts of ``text`` in which special tokens are ordinary text, in characters, in order.
        weights: parts of ``text`` with factors on the weights of the trained tokens, whose weights are 1 elsewhere. A
            token is in a part when its first character is, white space before a word apart. Factors of parts that
            overlap are multiplied.
        sequences: where an example makes several sequences, each of them; then only ``notes`` and
            ``unused`` are given beside it.
    """

    text: str = ""
    spans: tuple[Span, ...] = ()
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    rules: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    ids: NDArray[np.int32] | None = None
    mask: NDArray[Any] | None = None
    unused: tuple[str, ...] = ()
    plain: tuple[Span, ...] = ()
    weights: tuple[WeightedSpan, ...] = ()
    sequences: tuple[Rendered, ...] = ()


_FITS = "rule fits "
"""Beginning of a note about a rule of ``data.weights``, before its number."""


def fitting_note(rule: int) -> str:
    """Return the note of an example about a rule of ``data.weights`` that fits some of its text."""
    return f"weights: {_FITS}{rule}"


def fitting_rules(notes: Iterable[str]) -> set[int]:
    """Return the rules of ``data.weights`` that fit some text, from the notes about a source's examples."""
    found = (re.search(rf"(?:^|: ){_FITS}(\d+)$", note) for note in notes)
    return {int(one[1]) for one in found if one}


def product_of(weights: Sequence[WeightedSpan]) -> tuple[WeightedSpan, ...]:
    """Return spans that do not overlap, in order, each with the product of the weights of those that hold it.

    Raises:
        DataError: when a product is too large or too small for float32.
    """
    if not weights:
        return ()
    changes = sorted(
        event for start, end, weight in weights if start < end for event in ((start, 1, weight), (end, -1, weight))
    )
    active: Counter[float] = Counter()
    made: list[WeightedSpan] = []
    before = 0
    for place, change, weight in changes:
        product = math.prod(value**times for value, times in active.items())
        if not is_weight(product):
            raise DataError(
                f"the weights of a text are {', '.join(f'{value:g}' for value in active.elements())}, whose product"
                f" {product:g} is no positive number of float32; correct them, or `data.weights`"
            )
        if product != 1 and before < place:
            made.append((before, place, product))
        active[weight] += change
        before = place
    return tuple(made)
