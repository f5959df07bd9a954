"""Micro-batches: shapes, padding, and documents that do not see each other in a real model."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from hooktrain_sft.data.collate import collate_flat, collate_stacked
from hypothesis import given
from hypothesis import strategies as st

from hooktrain import document_keys


def sequence(*documents: list[int]) -> dict[str, Any]:
    """A sequence of these documents, in which all tokens but the first of each are trained."""
    ids = np.array(list(chain(*documents)), np.int64)
    labels = np.array(list(chain(*([-100, *document[1:]] for document in documents))), np.int64)
    positions = np.concatenate([np.arange(len(document)) for document in documents])
    return {"input_ids": ids, "labels": labels, "position_ids": positions}


def test_flat() -> None:
    batch = collate_flat([sequence([5, 6, 7]), sequence([8, 9])])
    assert "attention_mask" not in batch, "it would hide the restarts"
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]


def test_stacked_pads_by_length() -> None:
    batch = collate_stacked([sequence([5, 6, 0], [8, 0]), sequence([0, 0])])
    assert batch["input_ids"].tolist() == [[5, 6, 0, 8, 0], [0, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 0, -100, 0], [-100, 0, -100, -100, -100]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]
    assert batch["tokens"] == 7, "padding does not count"


def test_documents_in_the_inputs_of_variable_length_kernels() -> None:
    flat = collate_flat([sequence([5, 6, 7], [8]), sequence([8, 9])])
    assert flat["document_lengths"] == (3, 1, 2)
    assert flat["cu_seq_lens_q"].tolist() == flat["cu_seq_lens_k"].tolist() == [0, 3, 4, 6]
    assert flat["cu_seq_lens_q"].dtype == torch.int32
    assert flat["max_length_q"] == flat["max_length_k"] == 3
    stacked = collate_stacked([sequence([5, 6], [8]), sequence([8]), sequence([1, 2, 3])])
    assert stacked["document_lengths"] == (2, 1, 1, 2, 3), "the padding of the second sequence is a document of its own"
    assert all(type(flat[name]) is int for name in ("max_length_q", "max_length_k")), "what stays on the host"


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=5),
    st.sampled_from([np.int32, np.int64]),
)
def test_documents_fill_the_batch_and_begin_where_positions_do(sequences: list[list[int]], dtype: Any) -> None:
    made = [
        {name: values.astype(dtype) for name, values in sequence(*([1] * n for n in sizes)).items()}
        for sizes in sequences
    ]
    for batch, padded in ((collate_flat(made), False), (collate_stacked(made), True)):
        positions = batch["position_ids"]
        assert sum(batch["document_lengths"]) == positions.numel() == int(batch["cu_seq_lens_q"][-1])
        assert torch.equal(batch["cu_seq_lens_q"][:-1].long(), torch.nonzero(positions.flatten() == 0).flatten()), (
            "positions start at 0 in each document, the padding included, and nowhere else"
        )
        assert batch["max_length_q"] == max(batch["document_lengths"]) == int(positions.max()) + 1
        if not padded:
            assert batch["document_lengths"] == tuple(chain(*sequences))


def test_documents_survive_workers_and_pinned_copies() -> None:
    """The loader's workers send batches through a queue; lengths come out as the numbers that they were."""
    loader = torch.utils.data.DataLoader(
        [sequence([5, 6, 7], [8]), sequence([8, 9])],  # type: ignore[arg-type]
        batch_size=2,
        collate_fn=collate_flat,
        num_workers=1,
    )
    (batch,) = loader
    assert batch["document_lengths"] == (3, 1, 2) and batch["max_length_q"] == 3
    assert document_keys(batch["document_lengths"])["cu_seq_lens_k"].tolist() == batch["cu_seq_lens_k"].tolist()  # type: ignore[union-attr]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("collate", [collate_flat, collate_stacked])
def test_documents_do_not_see_each_other(make_llama: Callable[..., Any], attention: str, collate: Any) -> None:
    model = make_llama(attn_implementation=attention).eval()

    def logits(first: list[int]) -> torch.Tensor:
        batch = collate([sequence(first, [11, 12, 13, 14]), sequence([21, 22, 23])])
        batch.pop("labels")
        with torch.no_grad():
            return model(**batch, use_cache=False).logits.reshape(-1, 61)

    one, other = logits([1, 2, 3, 4, 5]), logits([6, 7, 8, 9, 10])
    assert not torch.equal(one[:5], other[:5])
    assert torch.equal(one[5:], other[5:]), "bit by bit: what follows does not depend on the first document"
    with torch.no_grad():
        alone = model(torch.tensor([[11, 12, 13, 14]]), use_cache=False).logits[0]
    torch.testing.assert_close(one[5:9], alone, rtol=1e-5, atol=1e-5)


def test_padding_changes_nothing(make_llama: Callable[..., Any]) -> None:
    model = make_llama().eval()
    with torch.no_grad():
        stacked = model(
            **without_labels(collate_stacked([sequence([1, 2, 3], [4, 5]), sequence([6, 7])])), use_cache=False
        ).logits
        alone = model(**without_labels(collate_stacked([sequence([6, 7])])), use_cache=False).logits
    torch.testing.assert_close(stacked[1, :2], alone[0], rtol=1e-5, atol=1e-5)


def without_labels(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch.items() if name != "labels"}
