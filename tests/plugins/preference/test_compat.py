"""What the plugin reads of transformers' classifiers is there."""

from __future__ import annotations

import torch
from hooktrain_preference.compat import decoder_and_scores, padding_id, pooled_scores
from transformers import AutoModelForSequenceClassification, LlamaConfig

from hooktrain.testing import make_llama, make_tokenizer


def test_parts_of_a_classifier() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=30, **sizes, num_labels=1, pad_token_id=7)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    found = decoder_and_scores(model)
    assert found is not None and padding_id(model) == 7
    ids = torch.arange(8, 14)[None]
    decoder, head = found
    with torch.no_grad():
        hidden = decoder(input_ids=ids).last_hidden_state
        torch.testing.assert_close(head(hidden)[:, -1], pooled_scores(model(input_ids=ids)))


def test_a_language_model_has_none() -> None:
    assert decoder_and_scores(make_llama(make_tokenizer())) is None
