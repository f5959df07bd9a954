"""Vision-language models are trained on text: the rest of them is frozen, and exported with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hooktrain_hf.vision import parts_without_text
from transformers import AutoModelForImageTextToText, T5Config, T5ForConditionalGeneration

from hooktrain import ModelError, Trainer
from tests.facts import facts
from tests.plugins.hf.vision_models import FAMILIES, save

EXPORT = {"type": "huggingface", "save_end_of_training": True}


def check(family: str, run: Callable[..., Trainer], folder: Path) -> None:
    base = AutoModelForImageTextToText.from_pretrained(save(family, folder))
    parts = parts_without_text(base)
    assert parts
    trainer = run(model=str(folder), checkpoint=[EXPORT], train_iters=2)
    exported = AutoModelForImageTextToText.from_pretrained(trainer.run_dir / "export")
    before, after = base.state_dict(), exported.state_dict()
    assert before.keys() == after.keys() and type(exported) is type(base)
    frozen = {name for name in before if name.startswith(tuple(f"{part}." for part in parts))}
    assert frozen and all(torch.equal(before[name], after[name]) for name in frozen)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    trained = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert changed and changed.isdisjoint(frozen) and trained.isdisjoint(frozen)
    assert (trainer.run_dir / "export" / "preprocessor_config.json").read_text() == '{"size": 16}'


def test_text_is_trained_and_all_is_exported(run_chat: Callable[..., Trainer], tmp_path: Path) -> None:
    check("Llava", run_chat, tmp_path / "base")


@pytest.mark.thorough
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family(run_chat: Callable[..., Trainer], tmp_path: Path, family: str) -> None:
    check(family, run_chat, tmp_path / "base")


@pytest.mark.parametrize("asked", [False, True])
def test_all_linear_is_that_of_the_text(run_chat: Callable[..., Trainer], tmp_path: Path, asked: bool) -> None:
    folder = save("Llava", tmp_path / "base")
    trainer = run_chat(
        model={"name_or_path": str(folder), "train_vision": asked}, peft={"type": "lora", "r": 2}, train_iters=1
    )
    adapted = [name for name, _ in trainer.model.named_modules() if name.endswith("lora_A")]
    assert any("language_model" in name for name in adapted)
    assert any("vision_tower" in name for name in adapted) is asked


def test_a_model_without_a_causal_head_is_refused_by_its_type(
    run_chat: Callable[..., Any], tiny_llama: Path, tmp_path: Path
) -> None:
    config = T5Config(vocab_size=300, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    with pytest.raises(ModelError, match=facts("model.name_or_path", "type t5", "causal language model")):
        run_chat(model=str(tmp_path / "t5"), tokenizer=str(tiny_llama))
