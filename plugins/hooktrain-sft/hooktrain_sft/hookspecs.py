"""Hooks of this plugin, with which rendering, packing and the LM head can be replaced separately."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hooktrain import hookspec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch.nn import Module

    from hooktrain_sft.chat.rendered import Rendered
    from hooktrain_sft.data.formats import Format
    from hooktrain_sft.data.packing import Bins
    from hooktrain_sft.loss.lm_head import HeadLoss
    from hooktrain_sft.loss.logit_transform import LogitTransform

__all__ = ["make_head_loss", "pack_sequences", "register_formats", "render_example"]


@hookspec
def register_formats(source: Any, config: Any) -> Mapping[str, Format] | None:
    """Register formats of examples: their recognition and their conversion to canonical examples.

    Called: by ``make_data`` of ``hooktrain-sft`` for ``type: sft``, once for each source, before its examples are read;
        and by its ``estimate_data``.
    Ranks: every rank; each must register the same.
    Device: must not touch a device.

    Args:
        source: the source's config.
        config: the recipe's ``data``.

    Returns:
        Formats by their name under ``data.format``. They are tried in order, those of other plugins before this one's
        own, and the first that recognises the columns is used. Two of one name are an error. None registers nothing.

    Default: ``hooktrain-sft`` registers ``role_mapping``, ``input_ids``, ``messages``, ``sharegpt``,
    ``prompt_completion``, ``alpaca``, ``pairs``, ``xlam``, ``text`` and ``raw``.
    """


@hookspec(firstresult=True)
def render_example(example: Any, tokenizer: Any, config: Any) -> Rendered | None:
    """Render an example of a source as text with the spans that are trained.

    Called: by ``make_data`` of ``hooktrain-sft``, once for each example of each source; the texts are tokenized in
        batches afterwards.
    Ranks: every rank; each must return the same. With ``data.num_proc``, several forked processes of a rank: what it
        returns may depend on its arguments alone, and what it changes is lost with the process. A plugin that is an
        object with attributes renders in one process, unless the recipe writes a number of them; so does one whose
        format converts the examples with a method of such an object.
    Device: must not touch a device.

    Args:
        example: a mapping of column names to values; for ``type: sft`` a canonical one, see
            ``hooktrain_sft.data.formats``.
        tokenizer: the result of ``make_tokenizer``.
        config: the recipe's ``data``.

    Returns:
        The text and its trained spans, or ids and a mask; None leaves it to the next plugin. A ``DataError`` is shown
        with the source and the number of the example.

    Default: ``hooktrain-sft`` renders ``messages`` with the chat template for ``sft``, and passes text and ids on
    unchanged.
    """


@hookspec(firstresult=True)
def pack_sequences(lengths: NDArray[np.int64], max_length: int, config: Any) -> Bins | Sequence[Sequence[int]] | None:
    """Group documents into sequences of several documents.

    Called: by ``make_data`` of ``hooktrain-sft``, once for each set, with ``pack_samples: true``.
    Ranks: every rank; each must return the same.
    Device: must not touch a device.

    Args:
        lengths: tokens of each document, none above ``max_length``, shape (documents,).
        max_length: tokens that a bin holds.
        config: the recipe's ``data``.

    Returns:
        Bins, each a list of document indices; every document must be in exactly one. None leaves it to the next plugin.

    Default: ``hooktrain-sft`` packs the complete set with best-fit-decreasing, and closer where documents are few.
    """


@hookspec(firstresult=True)
def make_head_loss(config: Any, transform: LogitTransform, model: Module) -> HeadLoss | None:
    """Build a function that computes LM head and loss together, in place of this plugin's own.

    Called: by the losses ``sft`` and ``dft``, once for each model, before the first step.
    Ranks: every rank.
    Device: may use it.

    Args:
        config: the recipe's ``loss``, a ``CrossEntropyConfig``.
        transform: the model's transform of the output of its LM head.
        model: the model inside its wrappers, on its device.

    Returns:
        A function of the hidden states (tokens, hidden), the weight of the head (vocabulary, hidden), its bias
        (vocabulary,) or None, and the targets (tokens,), -100 for none; and, given only with weighted tokens, which are
        refused where it has no such parameter, of factors (tokens,) on the loss and the metrics of each. It returns the
        loss summed over the targets, of shape () with a graph, and a mapping of metrics to log, sums of shape () over
        the same targets with the same names in every call. It may be called under autocast and under ``torch.no_grad``.
        It is used for heads that are a plain linear layer whose weight is complete. None leaves it to the next plugin.

    Default: none; ``hooktrain-sft`` computes a chunk of tokens at a time.
    """
