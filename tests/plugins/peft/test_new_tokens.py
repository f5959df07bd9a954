"""Tokens that the base does not know are trained with the adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM

from tests.plugins.peft.conftest import logits

MARK = "<|mark|>"
TEMPLATE = (
    "{% for message in messages %}{{ '" + MARK + "' + message['role'] + message['content'] + eos_token }}{% endfor %}"
)
TOKENIZER = {"add_tokens": [MARK], "chat_template": TEMPLATE}
EXPORT = {"type": "huggingface", "save_end_of_training": True}


@pytest.mark.parametrize("base", ["tied", "untied"])
@pytest.mark.parametrize(
    "method", [{"type": "lora", "r": 4}, {"type": "lora", "r": 4, "modules_to_save": ["embed_tokens"]}], ids=str
)
def test_new_tokens_are_trained_with_the_adapter_and_exported(
    run: Callable[..., Any], bases: dict[str, Path], base: str, method: dict[str, Any]
) -> None:
    given = {"model": str(bases[base]), "tokenizer": TOKENIZER, "peft": method}
    trainer = run(checkpoint=[EXPORT, {"type": "full", "save_every_n_steps": 2}], **given)
    id_ = trainer.tokenizer.convert_tokens_to_ids(MARK)
    embedding = trainer.model.get_input_embeddings()
    row = embedding(torch.tensor([[id_]]))[0, 0]
    known = AutoModelForCausalLM.from_pretrained(bases[base]).get_input_embeddings().weight
    assert (row - known.mean(0)).abs().max() > 1e-3
    ids = torch.tensor([[id_, 5, 9, id_, 30]])
    reloaded = AutoPeftModelForCausalLM.from_pretrained(trainer.run_dir / "export")
    torch.testing.assert_close(logits(reloaded, ids), logits(trainer.model, ids))


def test_a_merged_export_has_the_new_tokens(run: Callable[..., Any]) -> None:
    trainer = run(
        checkpoint=[EXPORT], tokenizer=TOKENIZER, peft={"type": "lora", "r": 4, "merge_on_export": True}, train_iters=2
    )
    ids = torch.tensor([[trainer.tokenizer.convert_tokens_to_ids(MARK), 5, 9]])
    merged = AutoModelForCausalLM.from_pretrained(trainer.run_dir / "export")
    torch.testing.assert_close(logits(merged, ids), logits(trainer.model, ids), rtol=1e-4, atol=1e-4)


def test_a_method_without_single_tokens_trains_the_embedding(run: Callable[..., Any]) -> None:
    trainer = run(tokenizer=TOKENIZER, peft={"type": "ia3", "target_modules": ["k_proj"]}, train_iters=2)
    assert trainer.model.active_peft_config.modules_to_save
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert any("embed_tokens" in name for name in trained)
