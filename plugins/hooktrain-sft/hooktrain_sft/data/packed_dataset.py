"""Sequences of one document or of a bin of documents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hooktrain_sft.data.documents import Documents
from hooktrain_sft.data.packing import Bins

__all__ = ["IGNORE_INDEX", "PackedDataset", "TokenSequence"]

IGNORE_INDEX = -100
"""Label of a token that carries no loss, as in torch and transformers."""

_NAMED = 4
"""Examples of a sequence that a message names."""

TokenSequence = dict[str, NDArray[Any]]
"""``input_ids``, ``labels`` and ``position_ids``, each of shape (tokens,); and ``token_weights``, those of the labels,
where any is neither 0 nor 1."""


class PackedDataset:
    """Sequences of documents; positions restart at 0 where a document begins, and its first token has no label."""

    def __init__(
        self, documents: Documents, bins: Bins | None = None, name: Callable[[int], object] = "example {}".format
    ) -> None:
        """Make a sequence of each bin, or without ``bins`` of each document.

        Args:
            documents: all of them.
            bins: the documents of each sequence.
            name: names an example, for messages.
        """
        self.documents = documents
        self.bins = bins
        self._name = name

    def __len__(self) -> int:
        return len(self.documents) if self.bins is None else len(self.bins)

    def __getitem__(self, index: int) -> TokenSequence:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        parts = [self.documents.tokens(member) for member in self.members(index % len(self))]
        ids = np.concatenate([ids for ids, _ in parts]).astype(np.int64)
        trained = np.concatenate([mask for _, mask in parts])
        positions = np.concatenate([np.arange(len(ids)) for ids, _ in parts])
        made = {"input_ids": ids, "labels": np.where(trained, ids, IGNORE_INDEX), "position_ids": positions}
        return {**made, "token_weights": trained} if trained.dtype == np.float32 else made

    def row_name(self, row: int) -> str:
        """Return the examples of a sequence, as :class:`hooktrain.DatasetDefaults` says."""
        examples = list(dict.fromkeys(int(self.documents.examples[member]) for member in self.members(row)))
        more = [f"{len(examples) - _NAMED} more"] if len(examples) > _NAMED else []
        return ", ".join([*(str(self._name(example)) for example in examples[:_NAMED]), *more])

    def members(self, index: int) -> list[int]:
        """Return the documents of a sequence."""
        members: list[int] = [index] if self.bins is None else self.bins[index].tolist()
        return members

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence, shape (sequences,)."""
        lengths = self.documents.lengths
        if self.bins is None:
            return lengths
        ends = np.concatenate([[0], np.cumsum(lengths[self.bins.order])])
        return np.diff(ends[self.bins.offsets])
