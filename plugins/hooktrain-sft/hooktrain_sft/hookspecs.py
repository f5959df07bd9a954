"""The hooks that this plugin adds, so that rendering and packing can be replaced each on its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hooktrain import hookspec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hooktrain_sft.formats import Format
    from hooktrain_sft.packing import Bins
    from hooktrain_sft.render import Rendered

__all__ = ["pack_rows", "register_formats", "render_row"]


@hookspec
def register_formats(source: Any, config: Any) -> Mapping[str, Format]:
    """Offer formats of rows: how each is recognised, and how its rows become ones that can be rendered.

    Called: by ``make_data`` of ``hooktrain-sft`` for ``type: sft``, once for each source, before its rows are read.
    Ranks: every rank; each must offer the same.
    Device: must not touch a device.

    Args:
        source: the source's config.
        config: what the recipe says under ``data``.

    Returns:
        Formats by the name that a recipe can write under ``data.format``; the first that recognises the columns is
        taken, those of other plugins before this one's own. Two of one name are an error.

    Default: ``hooktrain-sft`` offers ``role_mapping``, ``input_ids``, ``messages``, ``sharegpt``,
    ``prompt_completion``, ``alpaca``, ``text`` and ``raw``.
    """


@hookspec(firstresult=True)
def render_row(row: Any, tokenizer: Any, config: Any) -> Rendered | None:
    """Turn a row of a source into text, and say which of it is trained.

    Called: by ``make_data`` of ``hooktrain-sft``, once for each row of each source; the texts are tokenized together
        afterwards.
    Ranks: every rank; each must render alike.
    Device: must not touch a device.

    Args:
        row: a mapping of column names to values; for ``type: sft`` as the source's format gives it, see
            ``hooktrain_sft.formats``.
        tokenizer: what ``make_tokenizer`` returned.
        config: what the recipe says under ``data``.

    Returns:
        The text and the spans of it that are trained, or ids and a mask. A ``DataError`` is shown with the source and
        the number of the row. None declines, and the next plugin is asked.

    Default: ``hooktrain-sft`` renders ``messages`` with the chat template for ``sft``, and takes text and ids as they
    are.
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
