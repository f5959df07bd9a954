"""Pairs to micro-batches: all answers in one sequence without padding, each a document with its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hooktrain_sft import collate_flat

from hooktrain import Batch

__all__ = ["collate_pairs"]


def collate_pairs(sequences: Sequence[Any]) -> Batch:
    """Concatenate sequences of pairs to a single one.

    Args:
        sequences: each of one pair or several, whose chosen and rejected answers alternate.

    Returns:
        What :func:`hooktrain_sft.collate_flat` makes; ``answer_lengths``, the trained tokens of each document, a tuple
        that stays on the host; and ``tokens``, ``denominator`` and ``counts`` for ``count_batch``.
    """
    batch = collate_flat(sequences)
    lengths = batch["document_lengths"]
    trained = (batch["labels"][0] != -100).split(lengths)
    return {
        **batch,
        "answer_lengths": tuple(int(each.count_nonzero()) for each in trained),
        "tokens": sum(lengths),
        "denominator": len(lengths) / 2,
        "counts": "pairs",
    }
