"""The hooks that this plugin adds, so that rendering and packing can be replaced each on its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hooktrain import hookspec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hooktrain_sft.packing import Bins
    from hooktrain_sft.render import Rendered

__all__ = ["pack_rows", "render_row"]


@hookspec(firstresult=True)
def render_row(row: Any, tokenizer: Any, config: Any) -> Rendered | None:
    """Turn a row of a source into text, and say which of it is trained.

    Called: by ``make_data`` of ``hooktrain-sft``, once for each row of each source; the texts are tokenized together
        afterwards.
    Ranks: every rank; each must render alike.
    Device: must not touch a device.

    Args:
        row: what the source holds, a mapping of column names to values.
        tokenizer: what ``make_tokenizer`` returned.
        config: what the recipe says under ``data``.

    Returns:
        The text and the spans of it that are trained. A ``DataError`` is shown with the source and the number of the
        row. None declines, and the next plugin is asked.

    Default: ``hooktrain-sft`` renders ``messages`` with the chat template for ``sft``, and plain text for ``causal``.
    """


@hookspec(firstresult=True)
def pack_rows(lengths: NDArray[np.int64], max_length: int, config: Any) -> Bins | Sequence[Sequence[int]] | None:
    """Decide which documents share a row.

    Called: by ``make_data`` of ``hooktrain-sft``, once for each set of rows, when the recipe says
        ``pack_samples: true``.
    Ranks: every rank; each must pack alike.
    Device: must not touch a device.

    Args:
        lengths: tokens of each document, none above ``max_length``, shape (documents,).
        max_length: tokens that a bin can hold.
        config: what the recipe says under ``data``.

    Returns:
        Bins, each a list of document indices; every document in exactly one, which is checked. None declines, and the
        next plugin is asked.

    Default: ``hooktrain-sft`` packs best-fit-decreasing over the whole set.
    """
