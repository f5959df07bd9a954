"""The hooks that this plugin adds, so that rendering, packing and the LM head can be replaced each on its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hooktrain import hookspec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch.nn import Module

    from hooktrain_sft.chat.render import Rendered
    from hooktrain_sft.data.formats import Format
    from hooktrain_sft.data.packing import Bins
    from hooktrain_sft.loss.lm_head import HeadLoss
    from hooktrain_sft.loss.logit_transform import LogitTransform

__all__ = ["make_head_loss", "pack_sequences", "register_formats", "render_example"]


@hookspec
def register_formats(source: Any, config: Any) -> Mapping[str, Format]:
    """Register formats of rows: how each is recognised, and how its rows become ones that can be rendered.

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
def render_example(row: Any, tokenizer: Any, config: Any) -> Rendered | None:
    """Turn a row of a source into text, and say which of it is trained.

    Called: by ``make_data`` of ``hooktrain-sft``, once for each row of each source; the texts are tokenized together
        afterwards.
    Ranks: every rank; each must render alike.
    Device: must not touch a device.

    Args:
        row: a mapping of column names to values; for ``type: sft`` as the source's format gives it, see
            ``hooktrain_sft.data.formats``.
        tokenizer: what ``make_tokenizer`` returned.
        config: what the recipe says under ``data``.

    Returns:
        The text and the spans of it that are trained, or ids and a mask. A ``DataError`` is shown with the source and
        the number of the row. None declines, and the next plugin is asked.

    Default: ``hooktrain-sft`` renders ``messages`` with the chat template for ``sft``, and takes text and ids as they
    are.
    """


@hookspec(firstresult=True)
def pack_sequences(lengths: NDArray[np.int64], max_length: int, config: Any) -> Bins | Sequence[Sequence[int]] | None:
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

    Default: ``hooktrain-sft`` packs over the whole set: best-fit-decreasing, or closer where documents are few.
    """


@hookspec(firstresult=True)
def make_head_loss(config: Any, transform: LogitTransform, model: Module) -> HeadLoss | None:
    """Build what computes LM head and loss together, in place of this plugin's own.

    Called: by the losses ``sft`` and ``dft``, once for each model they meet, before the first step.
    Ranks: every rank.
    Device: may use it.

    Args:
        config: what the recipe says under ``loss``, a ``CrossEntropyConfig``.
        transform: what the model does to the output of its LM head.
        model: the model itself, out of its wrappers, on its device.

    Returns:
        A function from hidden states (tokens, hidden), the weight of the head (vocabulary, hidden), its bias
        (vocabulary,) or None, and targets (tokens,), -100 being none, to the total, summed over the targets, of
        shape () and with a graph, and a mapping of what is logged beside it, sums of shape () over the same targets,
        with the same names in every call. It may be called under autocast and under ``torch.no_grad``. It is used for
        heads that are a plain linear layer with all of its weights there. None declines, and the next plugin is asked.

    Default: none; ``hooktrain-sft`` computes a chunk of tokens at a time.
    """
