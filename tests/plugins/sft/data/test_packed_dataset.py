"""Sequences: positions restart and labels stop where a document begins."""

from __future__ import annotations

import numpy as np
import pytest
from hooktrain_sft.data.documents import Documents
from hooktrain_sft.data.packed_dataset import PackedDataset
from hooktrain_sft.data.packing import Bins

DOCUMENTS = Documents.of(
    [
        (np.array(ids, np.int32), np.array(mask, np.bool_))
        for ids, mask in [([7, 8, 9], [0, 1, 1]), ([4, 5], [1, 1]), ([6, 3], [0, 1])]
    ]
)


def as_lists(sequence: dict[str, np.ndarray]) -> list[list[int]]:
    return [sequence[name].tolist() for name in ("input_ids", "labels", "position_ids")]


def test_a_document_each() -> None:
    dataset = PackedDataset(DOCUMENTS)
    assert len(dataset) == 3
    assert as_lists(dataset[0]) == [[7, 8, 9], [-100, 8, 9], [0, 1, 2]]
    assert as_lists(dataset[-1]) == as_lists(dataset[2]) == [[6, 3], [-100, 3], [0, 1]]
    with pytest.raises(IndexError):
        dataset[3]


def test_bins() -> None:
    dataset = PackedDataset(DOCUMENTS, Bins.of([[2, 1], [0]]))
    assert len(dataset) == 2
    assert as_lists(dataset[0]) == [[6, 3, 4, 5], [-100, 3, -100, 5], [0, 1, 0, 1]]
    assert all(values.dtype == np.int64 for values in dataset[0].values())


def test_a_sequence_is_named_by_its_examples() -> None:
    assert PackedDataset(DOCUMENTS).row_name(1) == "example 1"
    assert PackedDataset(DOCUMENTS, Bins.of([[2, 1], [0]])).row_name(0) == "example 2, example 1"
    many = Documents.of([(np.array([1, 2], np.int32), np.array([0, 1], np.bool_))] * 6)
    named = PackedDataset(many, Bins.of([[0, 1, 2, 3, 4, 5]]), "rows.jsonl, example {}".format).row_name(0)
    assert named.startswith("rows.jsonl, example 0, ") and named.endswith("rows.jsonl, example 3, 2 more")
