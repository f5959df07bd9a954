"""A model's positions limit rows, evaluation rows and answers before it is built."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hooktrain_hf.position_count import positions_of
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, OPTConfig, RobertaConfig

from hooktrain import DataError, ModelError, Trainer, hookimpl
from hooktrain.testing import Recorder, make_tokenizer
from tests.facts import facts

POSITIONS = 48


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """A GPT-2 with few positions, and a tokenizer that names no limit."""
    tokenizer, folder = make_tokenizer(), tmp_path / "gpt2"
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=POSITIONS, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., str]:
    def write(name: str, *answers: str) -> str:
        turns = [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": answer}] for answer in answers]
        (tmp_path / name).write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in turns))
        return str(tmp_path / name)

    return write


LONG = "word " * 60


@pytest.mark.parametrize("use", ["sources", "eval_sources"])
def test_rows_that_are_too_long_are_refused_before_the_model_is_built(
    run_chat: Callable[..., Trainer], gpt2: Path, rows: Callable[..., str], use: str
) -> None:
    data = {"sources": [rows("short.jsonl", "ok")], use: [rows("long.jsonl", LONG)]}
    built: list[str] = []

    class Spy:
        @hookimpl(tryfirst=True)
        def make_model(self) -> None:
            built.append("model")

    with pytest.raises(DataError, match=facts("1 of 1", f"{POSITIONS} tokens", "model has positions", "data.overflow")):
        run_chat(Spy(), model=str(gpt2), data={**data, "overflow": "error"})
    assert not built


@pytest.mark.parametrize("packed", [False, True])
def test_overflow_handles_them(
    run_chat: Callable[..., Trainer], gpt2: Path, rows: Callable[..., str], packed: bool
) -> None:
    data = {"sources": [rows("rows.jsonl", "ok", LONG)], "overflow": "split", "pack_samples": packed}
    trainer = run_chat(model=str(gpt2), data={**data, "max_length": 4096}, train_iters=2)
    assert trainer.data.report["max_length"] == POSITIONS
    assert any("4096" in text and str(POSITIONS) in text for text in trainer.data.report["warnings"])


def test_answers_end_where_positions_do(run_chat: Callable[..., Trainer], gpt2: Path, rows: Callable[..., str]) -> None:
    data = {"sources": [rows("rows.jsonl", "ok")]}
    run_chat(model=str(gpt2), data=data, samples={"prompts": ["hi"], "max_new_tokens": 500}, train_iters=1)
    recorder = Recorder()
    with pytest.raises(ModelError, match=facts("samples.prompts[1]", f"positions for {POSITIONS}")):
        samples = {"prompts": ["hi", LONG], "at_start": False}
        run_chat(recorder, model=str(gpt2), data=data, samples=samples)
    assert "on_step_start" not in recorder.hooks


def test_a_plugin_counts_the_positions_of_its_models(
    run_chat: Callable[..., Trainer], rows: Callable[..., str]
) -> None:
    class Counts:
        @hookimpl
        def count_positions(self, config: Any) -> int:
            return 24

    with pytest.raises(DataError, match=facts("24 tokens", "model has positions")):
        run_chat(Counts(), data={"sources": [rows("long.jsonl", LONG)], "max_length": 512, "overflow": "error"})


def test_a_model_from_python_has_them_too(gpt2: Path, rows: Callable[..., str], tmp_path: Path) -> None:
    model = GPT2LMHeadModel.from_pretrained(gpt2)
    recipe = {"run_dir": str(tmp_path / "run"), "console": {"enabled": False}, "data": {"overflow": "error"}}
    examples = [{"prompt": "hi", "completion": LONG}]
    with pytest.raises(DataError, match=facts(f"{POSITIONS} tokens", "model has positions")):
        Trainer(recipe, model=model, train_dataset=examples).run()


def test_positions_of_configs() -> None:
    assert positions_of(LlamaConfig(max_position_embeddings=16)) is None, "rotary ones go on"
    assert positions_of(OPTConfig(max_position_embeddings=64)) == 64
    assert positions_of(RobertaConfig(max_position_embeddings=514, pad_token_id=1)) == 512
