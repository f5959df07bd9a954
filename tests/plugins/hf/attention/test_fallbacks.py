"""Models that need a mask get one, and lengths that do not fit a batch are refused."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
import torch
from hooktrain_hf import attention
from hooktrain_hf.attention import install_document_attention

from hooktrain import ModelError
from tests.facts import facts
from tests.plugins.hf.attention.families import (
    FAMILIES,
    HYBRIDS,
    LENGTHS,
    SMALL,
    documents,
    flat,
    logits,
    make,
    pair,
)


@pytest.mark.parametrize("family", HYBRIDS)
def test_layers_that_carry_a_state_give_what_they_give_alone_for_one_document(family: str) -> None:
    """Several documents are the business of the check before the first step: kernels can keep them apart."""
    model = make(family, HYBRIDS[family])
    install_document_attention(model, "auto")
    single = flat(documents((5,)))
    with torch.no_grad():
        torch.testing.assert_close(logits(model, single), logits(model, {"input_ids": single["input_ids"]}))


def test_a_hybrid_without_recurrent_layers_is_like_any_other() -> None:
    model = make("GraniteMoeHybrid", {**HYBRIDS["GraniteMoeHybrid"], "layer_types": ["attention", "attention"]})
    install_document_attention(model, "auto")
    texts = documents((5, 4))
    alone = torch.cat([logits(model, {"input_ids": torch.tensor([text])}) for text in texts])
    torch.testing.assert_close(logits(model, flat(texts)), alone, rtol=1e-4, atol=1e-4)


def test_a_pattern_that_needs_a_mask_gets_one(caplog: pytest.LogCaptureFixture) -> None:
    """Gemma 3 as an encoder sees both ways: only a mask expresses that, and documents are still kept apart."""
    model = make("Gemma3", {**FAMILIES["Gemma3"][1], "use_bidirectional_attention": True})
    texts = documents(LENGTHS)
    alone = torch.cat([logits(model, {"input_ids": torch.tensor([text])}) for text in texts])
    install_document_attention(model, "auto")
    with caplog.at_level(logging.WARNING):
        packed = logits(model, flat(texts))
        logits(model, flat(texts))
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)
    (record,) = [r for r in caplog.records if "micro-batch" in r.getMessage()]
    assert re.search(facts("mask", "pattern", "memory", "square"), record.getMessage())


def test_chunks_are_not_mistaken_for_windows() -> None:
    from transformers.masking_utils import chunked_causal_mask_function, sliding_window_causal_mask_function

    known = {"kv_length": 64, "local_size": 7, "allow_is_causal_skip": True}
    sliding = attention._pattern({**known, "mask_function": sliding_window_causal_mask_function(7)})
    chunked = attention._pattern(
        {**known, "mask_function": chunked_causal_mask_function(7, torch.zeros(1, dtype=torch.long))}
    )
    assert sliding == (True, 7) and chunked == (False, 7)


def test_a_model_without_the_interface_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    model = make("StableLm", SMALL)
    install_document_attention(model, "auto")
    with caplog.at_level(logging.WARNING), torch.no_grad():
        logits(model, flat(documents((5,))))
        assert not caplog.records, "a single document needs no mask"
        logits(model, flat(documents((5, 4))))
        logits(model, flat(documents((5, 4))))
    (record,) = caplog.records
    assert re.search(facts("mask", "StableLmForCausalLM", "transformers", "micro-batch"), record.getMessage())
    with pytest.raises(ModelError, match=facts("model.attn_implementation", "'documents'", "StableLmForCausalLM")):
        install_document_attention(make("StableLm", SMALL), "documents")


def test_arguments_that_only_an_eager_model_knows_are_passed_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown arguments are passed to the model's own function, with a mask, instead of being dropped."""
    model, _ = pair("Gemma2")
    texts = documents(LENGTHS)
    with torch.no_grad():
        expected = logits(model, flat(texts))
        monkeypatch.setattr(attention, "_KNOWN_ARGUMENTS", attention._KNOWN_ARGUMENTS - {"softcap"})
        torch.testing.assert_close(logits(model, flat(texts)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("more", [{}, {"attention_mask": torch.ones(1, 9, dtype=torch.long)}])
def test_lengths_that_are_not_those_of_the_tokens_are_refused(more: dict[str, Any]) -> None:
    model, _ = pair("Llama")
    batch = {**flat(documents((5, 4))), **more}
    if not more:
        batch["document_lengths"] = (5, 5)
    with pytest.raises(
        ModelError,
        match=facts(
            "batch",
            "document_lengths",
            f" {sum(batch['document_lengths'])} ",
            "9 tokens",
            *(more and ["attention_mask"]),
        ),
    ):
        model(**batch)
    with torch.no_grad():  # and nothing of it is left behind
        plain = {"input_ids": batch["input_ids"]}
        torch.testing.assert_close(logits(model, plain), logits(pair("Llama")[1], plain))
