"""The plugin ``samples``."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hooktrain_hf.samples import SamplesConfig, SamplesPlugin, answer

from hooktrain import ModelError, World
from tests.facts import facts


def run(trainer: Any, *hooks: tuple[str, int]) -> str:
    """Call events of a fresh plugin at given steps; return the messages."""
    shown: list[str] = []
    trainer.say = shown.append
    plugin = SamplesPlugin()
    for hook, step in hooks:
        trainer.global_step = step
        getattr(plugin, hook)(trainer)
    return "\n".join(shown)


def settings(**more: Any) -> dict[str, SamplesConfig]:
    return {"samples": SamplesConfig(prompts=("What is it?",), max_new_tokens=4, **more)}


def test_answers_before_and_after_are_printed_and_kept(
    make_llama: Callable[..., Any], make_trainer: Callable[..., Any]
) -> None:
    trainer = make_trainer(make_llama(), settings=settings())
    text = run(trainer, ("on_train_start", 0), ("on_evaluate_end", 2), ("on_train_end", 5))
    assert text.count("What is it?") == 2 and text.count("before") == 2 and text.count("after") == 1
    assert "step 2" not in text
    kept = [json.loads(line) for line in (trainer.run_dir / "samples.jsonl").read_text().splitlines()]
    assert [(line["step"], line["prompt"]) for line in kept] == [(0, "What is it?"), (5, "What is it?")]


def test_every_evaluation_does_not_repeat_itself_at_the_end(
    make_llama: Callable[..., Any], make_trainer: Callable[..., Any]
) -> None:
    trainer = make_trainer(make_llama(), settings=settings(every_evaluation=True, at_start=False))
    text = run(trainer, ("on_train_start", 0), ("on_evaluate_end", 2), ("on_evaluate_end", 4), ("on_train_end", 4))
    assert text.count("What is it?") == 2 and "before" not in text and "step 4" in text


def test_without_settings_or_on_other_ranks_nothing_happens(
    make_llama: Callable[..., Any], make_trainer: Callable[..., Any]
) -> None:
    trainer = make_trainer(make_llama())
    assert run(trainer, ("on_train_start", 0), ("on_train_end", 5)) == ""
    trainer = make_trainer(make_llama(), settings=settings())
    trainer.world = World(rank=1, world_size=2)
    assert run(trainer, ("on_train_start", 0), ("on_train_end", 5)) == "" and not trainer.run_dir.exists()


def test_an_answer_is_greedy_and_leaves_no_trace(
    make_llama: Callable[..., Any], tokenizer: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    model = make_llama(attention_dropout=0.5).train()
    model.generation_config.temperature = 0.1
    state, published = torch.get_rng_state(), model.generation_config.to_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = answer(model, tokenizer, "What is it?", max_new_tokens=6)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert model.generation_config.to_dict() == published and capfd.readouterr() == ("", "")

    rendered = "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    start, ends = len(ids), tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    with torch.no_grad():
        while len(ids) < start + 6 and (len(ids) == start or ids[-1] not in ends):
            ids.append(int(model.eval()(torch.tensor([ids])).logits[0, -1].argmax()))
    assert text == tokenizer.decode(ids[start:], skip_special_tokens=True).strip()


def test_a_system_message_that_the_template_refuses_is_named(make_llama: Callable[..., Any], tokenizer: Any) -> None:
    tokenizer.chat_template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}hi"
    with pytest.raises(ModelError, match=facts("no system", "samples.system", "tokenizer.chat_template")):
        answer(make_llama(), tokenizer, "x", system="Be kind.")
