"""Rows to micro-batches.

There is no attention mask: where position ids restart, transformers lets no token attend across, in the dense kernels
by a mask of its own and in the variable-length ones by sequence boundaries. Padding is known by the length of a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hooktrain_sft.dataset import IGNORE_INDEX, Row

__all__ = ["collate_flat", "collate_stacked"]


def collate_flat(rows: Sequence[Row]) -> dict[str, Tensor]:
    """All rows one after the other in a single row, without padding; each entry has shape (1, tokens)."""
    return {name: torch.from_numpy(np.concatenate([row[name] for row in rows]))[None] for name in rows[0]}


def collate_stacked(rows: Sequence[Row]) -> dict[str, Tensor | int]:
    """Rows below each other, padded on the right to the longest; each entry has shape (rows, tokens).

    The padding has no labels and is a document of its own, whose positions start at 0; ``tokens`` counts the rest.
    """
    longest = max(len(row["input_ids"]) for row in rows)
    made = {
        "input_ids": np.zeros((len(rows), longest), np.int64),
        "labels": np.full((len(rows), longest), IGNORE_INDEX, np.int64),
        "position_ids": np.zeros((len(rows), longest), np.int64),
    }
    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        for name, values in made.items():
            values[index, :length] = row[name]
        made["position_ids"][index, length:] = np.arange(longest - length)
    batch: dict[str, Tensor | int] = {name: torch.from_numpy(values) for name, values in made.items()}
    batch["tokens"] = sum(len(row["input_ids"]) for row in rows)
    return batch
