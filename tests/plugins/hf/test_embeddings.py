"""Tokens that a model does not know: they get the mean of the others, and are trained, exported and resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hooktrain_hf.embeddings import fit_vocabulary, new_token_ids
from hooktrain_hf.tokenizer import HFTokenizerConfig, build_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from hooktrain import ModelError, RecipeError, Trainer, hookimpl
from hooktrain.testing import make_llama, make_tokenizer
from tests.facts import facts

MARK, END = "<|mark|>", "<|finish|>"
ADDED = {"add_tokens": [MARK], "special_tokens": {"extra_special_tokens": [END]}}


class Messages:
    def __init__(self) -> None:
        self.said: list[str] = []

    @hookimpl
    def on_message(self, message: str) -> None:
        self.said.append(message)


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_token_is_the_mean_of_the_others(folder: Path, tied: bool) -> None:
    tokenizer = build_tokenizer(HFTokenizerConfig(name_or_path=str(folder), **ADDED))
    model = make_llama(make_tokenizer(), tied=tied)
    size = model.config.vocab_size
    weights = {id(w): w.detach().clone() for w in (model.get_input_embeddings().weight, model.lm_head.weight)}
    fit_vocabulary(model, tokenizer)
    assert new_token_ids(model) == (size, size + 1)
    assert model.config.vocab_size == len(tokenizer) == size + 2
    for before, layer in zip(weights.values(), (model.get_input_embeddings(), model.lm_head), strict=False):
        assert torch.equal(layer.weight[:size], before)
        torch.testing.assert_close(layer.weight[size:], before.mean(0).expand(2, -1))
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied


def test_rows_that_a_padded_vocabulary_left_unused_become_the_mean_too(folder: Path) -> None:
    tokenizer = build_tokenizer(HFTokenizerConfig(name_or_path=str(folder), **ADDED))
    model = make_llama(make_tokenizer())
    known = model.config.vocab_size
    model.resize_token_embeddings(known + 16, mean_resizing=False)
    fit_vocabulary(model, tokenizer)
    embedded = model.get_input_embeddings().weight
    assert len(embedded) == known + 16 and new_token_ids(model) == (known, known + 1)
    torch.testing.assert_close(embedded[known + 1], embedded[:known].mean(0))


def test_a_token_that_is_there_already_is_not_new(folder: Path) -> None:
    known = make_tokenizer().eos_token
    tokenizer = build_tokenizer(
        HFTokenizerConfig(name_or_path=str(folder), add_tokens=(known,), special_tokens={"pad_token": known})
    )
    model = make_llama(make_tokenizer())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit_vocabulary(model, tokenizer)
    assert tokenizer.pad_token == known and not new_token_ids(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_new_tokens_are_trained_exported_and_resumed(run_chat: Callable[..., Trainer], tmp_path: Path) -> None:
    messages = Messages()
    export = {"type": "huggingface", "save_end_of_training": True, "output_dir": str(tmp_path / "export")}
    full = {"type": "full", "save_every_n_steps": 2, "output_dir": str(tmp_path / "full")}
    mark = "{{ '" + MARK + "' + messages[1]['content'] + '" + END + "' }}"
    recipe: dict[str, Any] = {
        "tokenizer": {**ADDED, "chat_template": mark},
        "data": {"sources": [str(tmp_path / "rows.jsonl")], "max_length": 96, "train_on": "all"},
        "checkpoint": [full, export],
    }
    (tmp_path / "rows.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c"}]}\n' * 4
    )
    trainer = run_chat(messages, **recipe)
    (said,) = [text for text in messages.said if "new to the" in text]
    assert MARK in said and END in said
    ids = trainer.tokenizer.convert_tokens_to_ids([MARK, END])
    trained = trainer.model.get_input_embeddings().weight
    assert (trained[ids[0]] - trained[ids[1]]).abs().max() > 1e-3, "equal before the first step"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert torch.equal(model.get_input_embeddings().weight, trained)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "export")
    assert tokenizer.convert_tokens_to_ids([MARK, END]) == ids and len(tokenizer) == len(trained)
    resumed = run_chat(trainer={"resume_from": tmp_path / "full" / "step-00000002"}, **recipe)
    assert torch.equal(resumed.model.get_input_embeddings().weight, trained)
    # a run that continues from the export finds nothing new
    again = Messages()
    run_chat(again, **{**recipe, "checkpoint": [], "train_iters": 1, "model": str(tmp_path / "export")})
    assert not any("new to the" in text for text in again.said)


def test_a_tokenizer_with_more_tokens_grows_the_model_without_a_key(
    run_chat: Callable[..., Trainer], tiny_llama: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.add_special_tokens({"extra_special_tokens": [MARK, END]}, replace_extra_special_tokens=False)
    tokenizer.save_pretrained(tmp_path / "more")
    messages = Messages()
    trainer = run_chat(messages, tokenizer=str(tmp_path / "more"), train_iters=1)
    assert trainer.model.config.vocab_size == len(tokenizer)
    assert any("2 tokens" in text and MARK in text for text in messages.said)


def test_a_model_from_python_grows_only_where_the_recipe_adds_tokens(
    chat_recipe: dict[str, Any], tiny_llama: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    more = AutoTokenizer.from_pretrained(tiny_llama)
    more.add_tokens([MARK])
    size = model.config.vocab_size
    recipe = {**chat_recipe, "train_iters": 1}
    del recipe["model"]
    with pytest.raises(ModelError, match=facts(f"embeds {size} tokens", str(size + 1), "resize_token_embeddings")):
        Trainer(recipe, model=model, tokenizer=more).run()
    assert model.config.vocab_size == size
    Trainer({**recipe, "tokenizer": {"add_tokens": [MARK]}}, model=model).run()
    assert model.config.vocab_size == size + 1


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({"special_tokens": {"eos": END}}, ["special_tokens", "'eos'", "eos_token"]),
        ({"special_tokens": {"extra_special_tokens": END}}, ["special_tokens", END, "list"]),
        ({"special_tokens": {"eos_token": 3}}, ["special_tokens", "3", "one token"]),
    ],
)
def test_unknown_names_of_special_tokens(
    run_chat: Callable[..., Trainer], given: dict[str, Any], seen: list[str]
) -> None:
    with pytest.raises(RecipeError, match=facts("tokenizer", *seen)):
        run_chat(tokenizer=given)
