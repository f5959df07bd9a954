"""Examples that are tokenized already: ``input_ids`` and the columns that mark the trained tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hooktrain import DataError
from hooktrain_sft.formatting import shown

__all__ = ["read_ids"]

_MASKS = ("assistant_masks", "completion_mask")


def read_ids(
    example: Mapping[str, Any], vocabulary: int, part: str
) -> tuple[NDArray[np.int32], NDArray[np.bool_], str]:
    """Return ids and mask of an example, each of shape (tokens,), and the columns that made the mask.

    A token is trained where ``labels`` (not shifted) are not -100 and ``assistant_masks`` and ``completion_mask`` are
    not 0, as far as the example has them; with none of them, or where ``part`` is ``all``, every token is. Padding,
    which ``attention_mask`` marks at either end, is removed.

    Raises:
        DataError: when an id is not in the vocabulary, or a column does not fit the ids.
    """
    ids = _numbers(example["input_ids"], "input_ids")
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        wrong = int(np.flatnonzero((ids < 0) | (ids >= vocabulary))[0])
        raise DataError(
            f"input_ids[{wrong}] is {int(ids[wrong])}, expected an id from 0 to {vocabulary - 1}; use the tokenizer"
            " that the examples were tokenized with"
        )
    mask = np.ones(len(ids), np.bool_)
    used = []
    if part != "all":
        for name in (*_MASKS, "labels"):
            if example.get(name) is None:
                continue
            values = _numbers(example[name], name)
            if len(values) != len(ids):
                raise DataError(f"{name} has {len(values)} entries, expected {len(ids)}, as many as input_ids")
            if name == "labels":
                wrong_labels = np.flatnonzero((values != -100) & (values != ids))
                if len(wrong_labels):
                    at = int(wrong_labels[0])
                    raise DataError(
                        f"labels[{at}] is {int(values[at])}, expected -100 or the token at its place, {int(ids[at])};"
                        " labels are not shifted in the data"
                    )
                mask &= values != -100
            else:
                mask &= values != 0
            used.append(name)
    first, last = _unpadded(example, len(ids))
    return ids[first:last].astype(np.int32), mask[first:last], " and ".join(used) or "all"


def _numbers(value: Any, where: str) -> NDArray[np.int64]:
    try:
        made = np.asarray(value)
    except ValueError:
        made = np.zeros((0, 0))
    if made.ndim != 1 or (len(made) and made.dtype.kind not in "iub"):
        raise DataError(f"{where} is {shown(value)}, expected a list of whole numbers; convert the column")
    return made.astype(np.int64)


def _unpadded(example: Mapping[str, Any], tokens: int) -> tuple[int, int]:
    """Return where the tokens that are no padding begin and end."""
    if example.get("attention_mask") is None:
        return 0, tokens
    there = np.flatnonzero(_numbers(example["attention_mask"], "attention_mask"))
    if len(there) and (there[-1] >= tokens or there[-1] - there[0] + 1 != len(there)):
        raise DataError(
            "attention_mask has gaps or more entries than input_ids, expected padding at the ends only; store documents"
            " that share a sequence as examples of their own"
        )
    return (int(there[0]), int(there[-1]) + 1) if len(there) else (0, 0)
