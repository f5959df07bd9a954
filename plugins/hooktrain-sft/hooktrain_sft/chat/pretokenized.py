"""Examples that are tokenized already: ``input_ids`` and the columns that mark the trained tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hooktrain import DataError
from hooktrain_sft.config import is_weight
from hooktrain_sft.formatting import shown

__all__ = ["read_ids"]

_MASKS = ("assistant_masks", "completion_mask")


def read_ids(
    example: Mapping[str, Any], vocabulary: int, part: str
) -> tuple[list[tuple[NDArray[np.int32], NDArray[Any]]], str]:
    """Return ids and mask of each document of an example, each of shape (tokens,), and the columns of the mask.

    With ``token_weights`` a mask holds weights.

    An example is one document, or several that ``seq_lengths``, or ``position_ids`` that begin again, part.

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
    mask: NDArray[Any] = np.ones(len(ids), np.bool_)
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
    if example.get("token_weights") is not None:
        mask = np.where(mask, _weights(example["token_weights"], len(ids)), 0).astype(np.float32)
        used.append("token_weights")
    first, last = _unpadded(example, len(ids))
    ends = [*_starts(example, len(ids), first, last)[1:], last]
    made = []
    for end in ends:
        made.append((ids[first:end].astype(np.int32), mask[first:end]))
        first = end
    return made, " and ".join(used) or "all"


def _starts(example: Mapping[str, Any], tokens: int, first: int, last: int) -> list[int]:
    """Return the starts of the documents within the tokens that are no padding."""
    if example.get("seq_lengths") is not None:
        lengths = _numbers(example["seq_lengths"], "seq_lengths")
        if (lengths < 1).any() or int(lengths.sum()) not in (tokens, last - first):
            raise DataError(
                f"seq_lengths is {shown(lengths.tolist())}, together {int(lengths.sum())}, expected the numbers of"
                f" tokens of documents, together {last - first}; correct the example"
            )
        starts = np.cumsum([0, *lengths[:-1]]) + (first if int(lengths.sum()) == last - first else 0)
        return [first, *(int(start) for start in starts if first < start < last)]
    if example.get("position_ids") is None:
        return [first]
    positions = _numbers(example["position_ids"], "position_ids")
    if len(positions) != tokens:
        raise DataError(f"position_ids has {len(positions)} entries, expected {tokens}, as many as input_ids")
    steps = np.diff(positions[first:last])
    again = np.flatnonzero(steps != 1) + 1
    wrong = [int(at) for at in again if positions[first + at] != positions[first]]
    if wrong:
        at = first + wrong[0]
        raise DataError(
            f"position_ids[{at}] is {int(positions[at])} after {int(positions[at - 1])}, expected the next number, or"
            f" {int(positions[first])} where a document begins; correct the example"
        )
    return [first, *(first + int(at) for at in again)]


def _weights(value: Any, tokens: int) -> NDArray[np.float32]:
    listed = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(listed, (list, tuple)):
        raise DataError(f"token_weights is {shown(value)}, expected a list of numbers; convert the column")
    if len(listed) != tokens:
        raise DataError(f"token_weights has {len(listed)} entries, expected {tokens}, as many as input_ids")
    for at, weight in enumerate(listed):
        if not is_weight(weight):
            raise DataError(
                f"token_weights[{at}] is {shown(weight)}, expected 0 or a positive number; correct the example"
            )
    return np.array(listed, np.float32)


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
    mask = _numbers(example["attention_mask"], "attention_mask")
    if len(mask) != tokens:
        raise DataError(f"attention_mask has {len(mask)} entries, expected {tokens}, as many as input_ids")
    there = np.flatnonzero(mask)
    if len(there) and there[-1] - there[0] + 1 != len(there):
        raise DataError(
            "attention_mask has gaps within the input_ids, expected padding at the ends only; part documents that share"
            " a sequence by seq_lengths, or by position_ids that begin again"
        )
    return (int(there[0]), int(there[-1]) + 1) if len(there) else (0, 0)
