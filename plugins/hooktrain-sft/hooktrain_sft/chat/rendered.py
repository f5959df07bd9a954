"""A rendered example: text or ids, with the spans that are trained."""

from __future__ import annotations

import attrs
import numpy as np
from numpy.typing import NDArray

from hooktrain_sft.chat.template_trace import Span

__all__ = ["Rendered"]


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
            ``messages[1] assistant: after its prompt``; for ids, one for all of them. May be empty.
        notes: facts for the report, such as ``messages[3] assistant: empty, not trained``.
        ids: the tokens of an example that is tokenized already, shape (tokens,); then ``text``, ``spans``,
            ``before`` and ``after`` are empty.
        mask: the trained ones of ``ids``, shape (tokens,).
        unused: columns and fields of messages, as ``messages.name``, that are not rendered, for the report.
        plain: the parts of ``text`` in which special tokens are ordinary text, in characters, in order.
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
    mask: NDArray[np.bool_] | None = None
    unused: tuple[str, ...] = ()
    plain: tuple[Span, ...] = ()
    sequences: tuple[Rendered, ...] = ()
