"""Documents of a packed batch give what they give alone, for every family of models."""

from __future__ import annotations

import pytest
import torch
from hooktrain_hf.attention import install_document_attention
from hooktrain_hf.compat import decoder_of
from hooktrain_sft.data.collate import collate_flat, collate_stacked
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plugins.hf.attention.families import (
    FAMILIES,
    LENGTHS,
    SMALL,
    VOCABULARY,
    documents,
    flat,
    gradients,
    logits,
    make,
    pair,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_documents_give_what_they_give_alone(family: str) -> None:
    expected, config = FAMILIES[family]
    model = make(family, config)
    texts = documents(LENGTHS)
    weights = torch.randn(sum(LENGTHS), VOCABULARY, generator=torch.Generator().manual_seed(1))
    alone = torch.cat([logits(model, {"input_ids": torch.tensor([text])}) for text in texts])
    (alone * weights).sum().backward()
    wanted = gradients(model)

    install_document_attention(model, "auto")
    assert decoder_of(model).config._attn_implementation == expected
    packed = logits(model, flat(texts))
    (packed * weights).sum().backward()
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4 * float(alone.detach().abs().max()))
    found = gradients(model)
    assert found.keys() == wanted.keys()
    scale = max(float(gradient.abs().max()) for gradient in wanted.values())  # a key's bias has none but rounding
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_follows_a_document_does_not_depend_on_it_bit_by_bit(family: str) -> None:
    model = make(family, FAMILIES[family][1])
    install_document_attention(model, "auto")
    texts, others = documents(LENGTHS), documents(LENGTHS, seed=1)
    first = sum(LENGTHS[:3])
    with torch.no_grad():
        one, other = logits(model, flat(texts)), logits(model, flat([*others[:3], *texts[3:]]))
    assert not torch.equal(one[:first], other[:first])
    assert torch.equal(one[first:], other[first:])


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "documents"])
@pytest.mark.parametrize("training", [False, True])
def test_documents_are_kept_apart_for_callers_that_do_not_set_use_cache(implementation: str, training: bool) -> None:
    """transformers does not look for restarting positions while it fills a cache, which is its default."""
    model = make("Llama", SMALL, None if implementation == "documents" else implementation).train(training)
    install_document_attention(model, implementation)
    texts = documents(LENGTHS)
    alone = torch.cat([logits(model, {"input_ids": torch.tensor([text])}) for text in texts])
    batch = flat(texts)
    if implementation != "documents":
        batch = {name: batch[name] for name in ("input_ids", "position_ids")}
    torch.testing.assert_close(model(**batch).logits.flatten(0, 1), alone, rtol=1e-4, atol=1e-4)


def test_a_requested_cache_is_filled() -> None:
    model = make("Llama", SMALL)
    install_document_attention(model, "auto")
    ids = torch.tensor([[5, 6, 7]])
    assert model(ids).past_key_values is None
    assert model(ids, use_cache=True).past_key_values.get_seq_length() == 3
    assert model.generate(ids, max_new_tokens=4, do_sample=False).shape == (1, 7)


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "documents"])
def test_explicit_implementations_stay_what_they_are(implementation: str) -> None:
    model = make("Llama", SMALL, None if implementation == "documents" else implementation)
    install_document_attention(model, implementation)
    assert model.config._attn_implementation == implementation
    texts, others = documents(LENGTHS), documents(LENGTHS, seed=1)
    with torch.no_grad():
        one, other = logits(model, flat(texts)), logits(model, flat([others[0], *texts[1:]]))
    assert torch.equal(one[LENGTHS[0] :], other[LENGTHS[0] :]) and not torch.equal(one, other)


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "Mistral"])
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_any_lengths_in_any_sequences(family: str, data: st.DataObject) -> None:
    """Flat and stacked, against the dense mask that transformers builds from position ids."""
    sequences = data.draw(st.lists(st.lists(st.integers(1, 13), min_size=1, max_size=5), min_size=1, max_size=3))
    made = []
    for number, lengths in enumerate(sequences):
        batch = flat(documents(lengths, seed=number))
        ids, places = (batch[name][0].numpy() for name in ("input_ids", "position_ids"))
        made.append({"input_ids": ids, "labels": ids, "position_ids": places})
    model, dense = pair(family)
    for collate in (collate_flat, collate_stacked):
        batch = collate(made)
        batch.pop("labels")
        batch.pop("tokens", None)
        plain = {name: batch[name] for name in ("input_ids", "position_ids")}
        with torch.no_grad():
            torch.testing.assert_close(logits(model, batch), logits(dense, plain), rtol=1e-4, atol=1e-4)
