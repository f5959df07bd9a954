"""Batches without document lengths, generation, exports and copies are as transformers makes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from hooktrain_hf.model import HFModelConfig, build_model

from hooktrain import World
from tests.plugins.hf.attention.families import (
    LENGTHS,
    documents,
    flat,
    logits,
    pair,
)


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "Mistral"])
def test_without_lengths_everything_is_as_it_was(family: str) -> None:
    model, dense = pair(family)
    ids = torch.tensor(documents((12, 12)))
    left = torch.ones(2, 12, dtype=torch.long)
    left[0, :5] = 0
    packed = flat(documents((5, 7)))
    for batch in (
        {"input_ids": ids},
        {"input_ids": ids, "attention_mask": left},
        {name: packed[name] for name in ("input_ids", "position_ids")},
    ):
        with torch.no_grad():
            assert torch.equal(logits(model, batch), logits(dense, batch))


@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_is_as_it_was(family: str, cache: str) -> None:
    model, dense = pair(family)
    ids = torch.tensor(documents((9, 9)))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    wanted, found = (
        m.generate(ids, attention_mask=mask, max_new_tokens=9, do_sample=False, cache_implementation=cache)
        for m in (dense, model)
    )
    assert torch.equal(found, wanted)


def test_an_export_does_not_name_documents(tmp_path: Path, folder: Path) -> None:
    model = build_model(HFModelConfig(name_or_path=str(folder)), None, World())
    assert model.config._attn_implementation == "documents"
    model.save_pretrained(tmp_path / "out")
    assert "documents" not in (tmp_path / "out" / "config.json").read_text()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("wanted", ["sdpa", "eager"])
def test_build_model_sets_the_attention(folder: Path, wanted: str) -> None:
    model = build_model(HFModelConfig(name_or_path=str(folder), attn_implementation=wanted), None, World())
    assert model.config._attn_implementation == wanted


def test_copies_and_pickles(tmp_path: Path) -> None:
    model, _ = pair("Llama")
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    with torch.no_grad():
        assert torch.equal(logits(again, flat(documents(LENGTHS))), logits(model, flat(documents(LENGTHS))))
