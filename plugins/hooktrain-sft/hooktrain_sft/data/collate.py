"""Rows to micro-batches.

There is no attention mask: position ids restart where documents begin, and the lengths of the documents, which only the
host knows without waiting for a device, go along for the attention that can use them. Padding is known by the length of
a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hooktrain_sft.data.packed_dataset import IGNORE_INDEX, Row

__all__ = ["collate_flat", "collate_stacked", "document_keys"]


def collate_flat(rows: Sequence[Row]) -> dict[str, Any]:
    """All rows one after the other in a single row, without padding.

    Returns:
        Each entry of the rows with shape (1, tokens), and :func:`document_keys`.
    """
    batch: dict[str, Any] = {n: torch.from_numpy(np.concatenate([row[n] for row in rows]))[None] for n in rows[0]}
    return {**batch, **document_keys(length for row in rows for length in _lengths(row["position_ids"]))}


def collate_stacked(rows: Sequence[Row]) -> dict[str, Any]:
    """Rows below each other, padded on the right to the longest.

    The padding has no labels and is a document of its own, whose positions start at 0.

    Returns:
        Each entry with shape (rows, tokens); ``tokens``, how many are no padding; and :func:`document_keys`.
    """
    longest = max(len(row["input_ids"]) for row in rows)
    made = {
        "input_ids": np.zeros((len(rows), longest), np.int64),
        "labels": np.full((len(rows), longest), IGNORE_INDEX, np.int64),
        "position_ids": np.zeros((len(rows), longest), np.int64),
    }
    lengths: list[int] = []
    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        for name, values in made.items():
            values[index, :length] = row[name]
        made["position_ids"][index, length:] = np.arange(longest - length)
        lengths += _lengths(row["position_ids"])
        if length < longest:
            lengths.append(longest - length)
    batch: dict[str, Any] = {name: torch.from_numpy(values) for name, values in made.items()}
    batch["tokens"] = sum(len(row["input_ids"]) for row in rows)
    return {**batch, **document_keys(lengths)}


def document_keys(lengths: Iterable[int]) -> dict[str, Tensor | int | tuple[int, ...]]:
    """What a model is told of the documents of a micro-batch.

    Args:
        lengths: in tokens, padding included as documents of its own, in the order of the flattened (rows * tokens)
            positions.

    Returns:
        ``document_lengths``, which stay on the host, and what transformers' flash attention takes: ``cu_seq_lens_q``
        and ``cu_seq_lens_k``, where documents begin and where the last one ends, int32, shape (documents + 1,), and
        ``max_length_q`` and ``max_length_k``, the longest.
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


def _lengths(positions: NDArray[np.integer[Any]]) -> Iterator[int]:
    """Of the documents of a row: one begins where positions do not go on counting."""
    begins = np.flatnonzero(np.diff(positions, prepend=positions[0]) != 1)  # the first of all among them
    yield from np.diff(np.append(begins, len(positions))).tolist()
