"""Micro-batches: shapes, padding, and documents that do not see each other in a real model."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from hooktrain_sft.collate import collate_flat, collate_stacked


def row(*documents: list[int]) -> dict[str, Any]:
    """A row of these documents, in which all tokens but the first of each are trained."""
    ids = np.array(list(chain(*documents)), np.int64)
    labels = np.array(list(chain(*([-100, *document[1:]] for document in documents))), np.int64)
    positions = np.concatenate([np.arange(len(document)) for document in documents])
    return {"input_ids": ids, "labels": labels, "position_ids": positions}


def test_flat() -> None:
    batch = collate_flat([row([5, 6, 7]), row([8, 9])])
    assert set(batch) == {"input_ids", "labels", "position_ids"}, "an attention mask would hide the restarts"
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]


def test_stacked_pads_by_length() -> None:
    batch = collate_stacked([row([5, 6, 0], [8, 0]), row([0, 0])])
    assert batch["input_ids"].tolist() == [[5, 6, 0, 8, 0], [0, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 0, -100, 0], [-100, 0, -100, -100, -100]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("collate", [collate_flat, collate_stacked])
def test_documents_do_not_see_each_other(make_llama: Callable[..., Any], attention: str, collate: Any) -> None:
    model = make_llama(attn_implementation=attention).eval()

    def logits(first: list[int]) -> torch.Tensor:
        batch = collate([row(first, [11, 12, 13, 14]), row([21, 22, 23])])
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
            **without_labels(collate_stacked([row([1, 2, 3], [4, 5]), row([6, 7])])), use_cache=False
        ).logits
        alone = model(**without_labels(collate_stacked([row([6, 7])])), use_cache=False).logits
    torch.testing.assert_close(stacked[1, :2], alone[0], rtol=1e-5, atol=1e-5)


def without_labels(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch.items() if name != "labels"}
