"""Sequences to micro-batches.

There is no attention mask. Position ids restart where documents begin, and the batch holds the lengths of the documents
as host numbers, for attention implementations that use them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hooktrain import document_keys
from hooktrain_sft.data.packed_dataset import IGNORE_INDEX, TokenSequence

__all__ = ["collate_flat", "collate_stacked"]


def collate_flat(sequences: Sequence[TokenSequence]) -> dict[str, Any]:
    """Concatenate sequences to a single one, without padding.

    Returns:
        Each entry of the sequences with shape (1, tokens), and :func:`hooktrain.document_keys`.
    """
    sequences = _weighted(sequences)
    batch: dict[str, Any] = {
        name: torch.from_numpy(np.concatenate([one[name] for one in sequences]))[None] for name in sequences[0]
    }
    return {**batch, **document_keys(length for one in sequences for length in _lengths(one["position_ids"]))}


def collate_stacked(sequences: Sequence[TokenSequence]) -> dict[str, Any]:
    """Stack sequences, padded on the right to the longest.

    The padding has no labels and is a document of its own, whose positions start at 0.

    Returns:
        Each entry with shape (sequences, tokens); ``tokens``, the number without padding; and
        :func:`hooktrain.document_keys`.
    """
    sequences = _weighted(sequences)
    shape = len(sequences), max(len(one["input_ids"]) for one in sequences)
    made: dict[str, NDArray[Any]] = {
        "input_ids": np.zeros(shape, np.int64),
        "labels": np.full(shape, IGNORE_INDEX, np.int64),
        "position_ids": np.zeros(shape, np.int64),
    }
    if "token_weights" in sequences[0]:
        made["token_weights"] = np.zeros(shape, np.float32)
    lengths: list[int] = []
    for index, one in enumerate(sequences):
        length = len(one["input_ids"])
        padding = shape[1] - length
        for name, values in made.items():
            values[index, :length] = one[name]
        made["position_ids"][index, length:] = np.arange(padding)
        lengths += _lengths(one["position_ids"])
        if padding:
            lengths.append(padding)
    batch: dict[str, Any] = {name: torch.from_numpy(values) for name, values in made.items()}
    batch["tokens"] = sum(len(one["input_ids"]) for one in sequences)
    return {**batch, **document_keys(lengths)}


def _weighted(sequences: Sequence[TokenSequence]) -> Sequence[TokenSequence]:
    """Return the sequences, all with ``token_weights`` if one has them."""
    if not any("token_weights" in one for one in sequences):
        return sequences
    return [{"token_weights": (one["labels"] != IGNORE_INDEX).astype(np.float32), **one} for one in sequences]


def _lengths(positions: NDArray[np.integer[Any]]) -> Iterator[int]:
    """Yield the lengths of a sequence's documents; one begins where positions do not continue."""
    begins = np.flatnonzero(np.diff(positions, prepend=positions[0]) != 1)  # the first of all among them
    yield from np.diff(np.append(begins, len(positions))).tolist()
