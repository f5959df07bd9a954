"""Frozen models beside the run's own: what identifies their weights, and tokenizers that do not fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hooktrain_hf import FrozenModelConfig, require_same_tokens, weights_fingerprint
from hooktrain_hf.frozen_model import named_model_config
from hooktrain_hf.model import HFModelConfig

from hooktrain import ModelError
from hooktrain.testing import make_llama, make_tokenizer, save_llama
from tests.facts import facts


def test_weights_are_known_by_their_files(tiny_llama: Path, tmp_path: Path, no_network: None) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(tiny_llama, copied)
    found = weights_fingerprint(str(copied))
    assert found and found == weights_fingerprint(str(tiny_llama)), "wherever they lie"
    (copied / "tokenizer_config.json").write_text("{}")
    assert weights_fingerprint(str(copied)) == found, "the tokenizer is none of them"
    save_llama(copied, initializer_range=0.1)
    assert weights_fingerprint(str(copied)) != found
    assert weights_fingerprint("nobody/nothing") is None, "whose commit is not known"


def test_a_model_by_name_has_none_of_the_changes_of_the_run_s() -> None:
    own = HFModelConfig(
        name_or_path="own",
        revision="v1",
        weights_dtype="bf16",
        from_config=True,
        freeze=("embed",),
        hf_config_kwargs={"num_hidden_layers": 1},
        activation_checkpointing=True,
        attn_implementation="eager",
    )
    expected = HFModelConfig(name_or_path="other", weights_dtype="bf16", attn_implementation="eager")
    assert named_model_config(FrozenModelConfig(name_or_path="other"), own) == expected
    given = FrozenModelConfig(name_or_path="other", dtype="fp16")
    assert named_model_config(given, own).weights_dtype == "fp16"
    assert named_model_config(given, object()) == HFModelConfig(name_or_path="other", weights_dtype="fp16")


def test_without_a_tokenizer_of_its_own_sizes_are_compared(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    config = FrozenModelConfig(name_or_path=str(tmp_path))
    require_same_tokens("teacher", config, make_llama(tokenizer, vocab_size=len(tokenizer) + 2), tokenizer)
    require_same_tokens("teacher", config, make_llama(tokenizer, vocab_size=9), None)
    other = make_llama(tokenizer, vocab_size=2 * len(tokenizer))
    with pytest.raises(ModelError, match=facts("models.teacher.name_or_path", "no tokenizer", "expected")):
        require_same_tokens("teacher", config, other, tokenizer)
