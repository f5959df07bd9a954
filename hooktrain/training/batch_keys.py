"""Keys of a micro-batch that the engine and models know, and what makes them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from hooktrain.types import Batch

__all__ = ["HOST_KEYS", "document_keys", "padding_batch"]

HOST_KEYS = frozenset({"tokens", "denominator", "counts"})
"""Keys that stay on the host: what ``count_batch`` reads, and neither the loss nor the model."""


def padding_batch(batch: Batch) -> Batch:
    """Return the micro-batch with nothing trained: what a rank computes when the data has run out on it alone."""
    made = dict(batch)
    if "labels" in batch:
        made |= {"labels": torch.full_like(batch["labels"], -100), "tokens": 0}
    if "denominator" in batch:
        made |= {"denominator": 0.0, "tokens": 0}
    return made


def document_keys(lengths: Iterable[int]) -> dict[str, Tensor | int | tuple[int, ...]]:
    """Return the keys that describe the documents of a micro-batch without padding and without a mask.

    They are made on the host, so that no attention has to look for the documents on the device and wait for it.

    Args:
        lengths: in tokens, in the order of the flattened (sequences * tokens) positions; the padding of a sequence is
            a document.

    Returns:
        ``document_lengths``, which stay on the host, and the inputs of transformers' flash attention:
        ``cu_seq_lens_q`` and ``cu_seq_lens_k``, the start of each document and the end of the last one, int32, shape
        (documents + 1,), and ``max_length_q`` and ``max_length_k``, the longest.
    """
    known = tuple(int(length) for length in lengths)
    offsets = torch.zeros(len(known) + 1, dtype=torch.int32)
    torch.cumsum(torch.tensor(known), 0, dtype=torch.int32, out=offsets[1:])
    longest = max(known)
    return {
        "document_lengths": known,
        "cu_seq_lens_q": offsets,
        "cu_seq_lens_k": offsets,
        "max_length_q": longest,
        "max_length_k": longest,
    }
