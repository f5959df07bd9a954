"""A model and a config from Python are as they were after a run, but for what is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from hooktrain import Trainer, hookimpl
from hooktrain.testing import make_llama, make_tokenizer

ROWS = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(4)]


def recipe(tmp_path: Any, **more: Any) -> dict[str, Any]:
    return {"run_dir": str(tmp_path), "console": {"enabled": False}, "train_iters": 1, "micro_batch_size": 2, **more}


def test_objects_from_python_are_left_as_they_were(tmp_path: Any) -> None:
    tokenizer = make_tokenizer()
    model = make_llama(tokenizer)
    config = model.config
    rows, given = [dict(row) for row in ROWS], recipe(tmp_path)
    before = config.to_dict(), config._attn_implementation, model.generation_config.to_dict(), len(tokenizer)
    seen: list[str] = []

    class Spy:
        @hookimpl
        def on_step_start(self) -> None:
            seen.append(config._attn_implementation)

    trainer = Trainer(given, model=model, tokenizer=tokenizer, train_dataset=rows, plugins=[Spy()])
    trainer.run()
    assert seen == ["documents"]
    after = config.to_dict(), config._attn_implementation, model.generation_config.to_dict(), len(tokenizer)
    assert after == before and rows == ROWS and given == recipe(tmp_path)
    assert model.config is config and trainer.model is model
    ids = torch.tensor([[5, 6, 7]])
    assert model(ids).past_key_values is not None, "its own default"
    assert LlamaForCausalLM(config).config._attn_implementation == before[1]


@pytest.mark.parametrize("fails", [False, True])
def test_a_second_run_computes_documents_one_by_one_again(tmp_path: Any, fails: bool) -> None:
    tokenizer = make_tokenizer()
    model = make_llama(tokenizer)
    seen: list[str] = []

    class Spy:
        @hookimpl
        def on_step_start(self) -> None:
            seen.append(model.config._attn_implementation)
            if fails and len(seen) == 1:
                raise KeyError("mine")

    for number in range(2):
        trainer = Trainer(
            recipe(tmp_path / str(number)), model=model, tokenizer=tokenizer, train_dataset=ROWS, plugins=[Spy()]
        )
        if fails and not number:
            with pytest.raises(KeyError):
                trainer.run()
        else:
            trainer.run()
        assert model.config._attn_implementation == "sdpa"
    assert seen == ["documents", "documents"]
