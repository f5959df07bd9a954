"""Answers to micro-batches: all of them in one sequence without padding, each a document with its prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from hooktrain_sft import collate_flat
from numpy.typing import NDArray

from hooktrain import Batch, document_keys
from hooktrain_preference.answer_values import UNDESIRABLE
from hooktrain_preference.rows import REFERENCE, SET

__all__ = ["MISMATCHED", "SHARED", "collate_pairs", "collate_rewards", "collate_unpaired"]

SHARED = ("shared_tokens", "shared_offsets", "shared_lengths", "shared_prefixes")
"""Keys of a micro-batch of pairs with its tokens when prompts are there once: the places of those that stay, shape
(tokens,); the first of each document and the end, int32, shape (documents + 1,); and two tuples that stay on the host,
the tokens of each document, and how many it shares with the one before."""
MISMATCHED = "mismatched"
"""Key of a micro-batch with another one, of each prompt with the answer to another prompt."""
_LEAST = 8
"""Tokens of a prompt from which on it is shared."""

_Documents = list[tuple[NDArray[Any], NDArray[Any]]]


def collate_pairs(sequences: Sequence[Any]) -> Batch:
    """Concatenate sequences of pairs to a single one.

    Args:
        sequences: each of one pair or several, whose chosen and rejected answers alternate.

    Returns:
        What :func:`hooktrain_sft.collate_flat` makes; ``answer_lengths``, the trained tokens of each document, a tuple
        that stays on the host; ``tokens``, ``denominator`` and ``counts`` for ``count_batch``; and where prompts can be
        shared, ``shared_tokens``, ``shared_offsets``, ``shared_lengths`` and ``shared_prefixes``.
    """
    batch, documents = _flat(sequences)
    return {**batch, **_shared(documents), "denominator": len(documents) / 2, "counts": "pairs"}


def collate_rewards(sequences: Sequence[Any]) -> Batch:
    """Concatenate sequences of pairs to a single one, whose trained tokens weigh 1 more than the margin of their pair.

    Returns:
        As :func:`collate_pairs`, without shared prompts; and ``margins``, shape (pairs,), where there are any.
    """
    batch, documents = _flat(sequences)
    made = {**batch, "denominator": len(documents) / 2, "counts": "pairs"}
    weights = made.pop("token_weights", None)
    if weights is not None:
        made["margins"] = _first_weights(weights, documents)[::2] - 1.0
    return made


def collate_unpaired(sequences: Sequence[Any]) -> Batch:
    """Concatenate sequences of single answers to a single one.

    Returns:
        As :func:`collate_pairs`, without shared prompts; ``desirable``, shape (answers,),
        and ``label_counts``, the numbers of desirable and of other answers, on the host; and
        ``mismatched``, such a micro-batch of each prompt with the answer before its own, where there are two or more.
    """
    batch, documents = _flat(sequences)
    weights = batch.pop("token_weights", None)
    desirable = torch.ones(len(documents), dtype=torch.bool)
    if weights is not None:
        desirable = _first_weights(weights, documents) != UNDESIRABLE
    number = int(desirable.sum())
    made = {**batch, "desirable": desirable, "label_counts": (number, len(documents) - number)}
    made |= {"denominator": float(len(documents)), "counts": "answers"}
    if len(documents) > 1:
        made[MISMATCHED], _ = _flat(list(_mismatched(documents)))
    return made


def _flat(sequences: Sequence[Any]) -> tuple[Batch, _Documents]:
    """Return the parts that all micro-batches have, and ids and labels of each document."""
    kept = [{name: value for name, value in one.items() if name not in (REFERENCE, SET)} for one in sequences]
    batch: Batch = collate_flat(kept)
    ends = np.cumsum(batch["document_lengths"])[:-1]
    columns = (np.split(batch[name][0].numpy(), ends) for name in ("input_ids", "labels"))
    documents = list(zip(*columns, strict=True))
    made: Batch = {
        **batch,
        "answer_lengths": tuple(int(np.count_nonzero(labels != -100)) for _, labels in documents),
        "tokens": sum(batch["document_lengths"]),
    }
    if all(REFERENCE in one for one in sequences):
        made[REFERENCE] = torch.from_numpy(np.concatenate([one[REFERENCE] for one in sequences]))
    if SET in sequences[0]:
        made[SET] = sequences[0][SET]
    return made, documents


def _first_trained(labels: NDArray[Any]) -> int:
    """Return the place of the first trained token, or the number of tokens where none is."""
    trained = labels != -100
    return int(trained.argmax()) if trained.any() else len(labels)


def _first_weights(weights: torch.Tensor, documents: _Documents) -> torch.Tensor:
    """Return the weight of the first trained token of each document, 1 where none is trained, shape (documents,)."""
    values, start = [], 0
    for _, labels in documents:
        first = _first_trained(labels)
        values.append(float(weights[0, start + first]) if first < len(labels) else 1.0)
        start += len(labels)
    return torch.tensor(values)


def _mismatched(documents: _Documents) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield each prompt with the answer before its own, the first one with the last."""
    firsts = [_first_trained(labels) for _, labels in documents]
    for number, (ids, labels) in enumerate(documents):
        first, (other_ids, other_labels), other = firsts[number], documents[number - 1], firsts[number - 1]
        made = {
            "input_ids": np.concatenate([ids[:first], other_ids[other:]]),
            "labels": np.concatenate([labels[:first], other_labels[other:]]),
        }
        yield {**made, "position_ids": np.arange(len(made["input_ids"]))}


def _shared(documents: _Documents) -> Batch:
    """Return the keys :data:`SHARED`; nothing where no pair has a prompt that is worth it.

    A rejected answer begins with the last token of its prompt, which predicts its first token, and sees the tokens
    before it where the chosen answer has them.
    """
    kept: list[NDArray[Any]] = []
    lengths: list[int] = []
    prefixes: list[int] = []
    start = 0
    for (one, one_labels), (other, other_labels) in zip(documents[::2], documents[1::2], strict=True):
        most = min(_first_trained(one_labels), _first_trained(other_labels))
        same = one[:most] == other[:most]
        prefix = (most if same.all() else int(same.argmin())) - 1
        prefix = prefix if prefix >= _LEAST else 0
        kept += [np.arange(start, start + len(one)), np.arange(prefix, len(other)) + start + len(one)]
        lengths += [len(one), len(other) - prefix]
        prefixes += [0, prefix]
        start += len(one) + len(other)
    if not any(prefixes):
        return {}
    offsets = document_keys(lengths)["cu_seq_lens_q"]
    values = (torch.from_numpy(np.concatenate(kept)), offsets, tuple(lengths), tuple(prefixes))
    return dict(zip(SHARED, values, strict=True))
