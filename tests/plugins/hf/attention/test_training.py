"""Training on packed batches: checkpointing, dropout, autocast, compiling, adapters, complete runs."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from hooktrain_hf import document_attention
from hooktrain_hf.attention import install_document_attention

from hooktrain import ModelError
from hooktrain.testing import Recorder, train
from tests.facts import facts
from tests.plugins.hf.attention.families import (
    FAMILIES,
    LENGTHS,
    SMALL,
    documents,
    flat,
    gradients,
    logits,
    make,
    pair,
)


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "Mistral"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_activation_checkpointing_repeats_the_same(family: str, dropout: float) -> None:
    found = []
    for checkpointing in (False, True):
        model = make(family, {**FAMILIES[family][1], "attention_dropout": dropout})
        install_document_attention(model, "auto")
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(3)
        logits(model, flat(documents(LENGTHS))).square().sum().backward()
        found.append(gradients(model))
    kept, repeated = found
    assert kept and all(torch.equal(kept[name], repeated[name]) for name in kept)


def test_dropout_drops() -> None:
    """In training only, about as many as asked for, and without a bias."""
    config = {**SMALL, "attention_dropout": 0.5}
    model = make("Llama", config)
    install_document_attention(model, "auto")
    batch = flat(documents(LENGTHS))
    with torch.no_grad():
        plain = logits(model, batch)
        model.train()
        first, second = logits(model, batch), logits(model, batch)
    assert torch.equal(plain, logits(model.eval(), batch)) and not torch.equal(first, second)
    value, seen = torch.ones(1, 1, 4000, 1), torch.ones(4000, 4000, dtype=torch.bool)
    weighted = document_attention._unfused(
        torch.zeros_like(value), torch.zeros_like(value), value, seen, document_attention.Scores(1.0, dropout=0.25)
    )
    assert float(weighted.mean()) == pytest.approx(1, abs=1e-3)
    assert float(weighted.std()) == pytest.approx((0.25 / 0.75 / 4000) ** 0.5, rel=0.1)


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "Gemma3"])
def test_bf16_autocast(family: str) -> None:
    model, dense = pair(family)
    texts = documents(LENGTHS)
    with torch.no_grad():
        exact = logits(dense, {name: flat(texts)[name] for name in ("input_ids", "position_ids")})
        with torch.autocast("cpu", torch.bfloat16):
            close = logits(model, flat(texts)).float()
    assert float((close - exact).norm() / exact.norm()) < 0.05


@pytest.mark.parametrize("what", ["model", "layers"])
def test_compiled_models_fall_back(what: str) -> None:
    model = copy.deepcopy(pair("Llama")[0])
    texts = documents(LENGTHS)
    expected = logits(model, flat(texts))
    if what == "model":
        model = torch.compile(model, backend="eager")
    else:
        for layer in model.model.layers:
            layer.compile(backend="eager")
    torch.testing.assert_close(logits(model, flat(texts)), expected, rtol=1e-5, atol=1e-5)


def test_adapters() -> None:
    peft = pytest.importorskip("peft")
    model, texts = copy.deepcopy(pair("Llama")[0]), documents(LENGTHS)
    expected = logits(model, flat(texts))
    calls: list[int] = []
    spied = document_attention.Documents.__init__

    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            document_attention.Documents,
            "__init__",
            lambda self, *args: (calls.append(len(args[0])), spied(self, *args))[1],
        )
        found = logits(wrapped, flat(texts))  # as made, LoRA adds nothing
    torch.testing.assert_close(found, expected)
    assert calls == [len(LENGTHS)]
    prompted = peft.get_peft_model(
        copy.deepcopy(pair("Llama")[0]), peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    )
    with pytest.raises(ModelError, match=facts("batch", "document_lengths", "adapter", "prompts")):
        prompted(**flat(texts))
    assert prompted(**flat(texts[:1])).logits.shape[1] == 3 + LENGTHS[0]


@pytest.mark.parametrize(("packed", "checkpointing"), [(True, True), (False, False)])
def test_a_run_learns_the_same_document_by_document(
    tmp_path: Path, folder: Path, packed: bool, checkpointing: bool
) -> None:
    """Complete runs, packed and padding-free, with a worker, an evaluation and sample answers, against sdpa and its mask."""
    examples = tmp_path / "examples.jsonl"
    question = {"role": "user", "content": "What is the answer?"}
    answers = ["Forty-two it is.", "What?", "The answer is the answer.", "It is forty-two, is it?", "No.", "user it is"]
    examples.write_text(
        "".join(json.dumps({"messages": [question, {"role": "assistant", "content": a}]}) + "\n" for a in answers)
    )
    seen: dict[str, tuple[str, list[float]]] = {}
    for implementation in ("sdpa", "auto"):
        recorder = Recorder()
        trainer = train(
            {
                "type": "sft",
                "run_dir": str(tmp_path / implementation),
                "micro_batch_size": 2,
                "train_iters": 3,
                "model": {
                    "name_or_path": str(folder),
                    "attn_implementation": implementation,
                    "activation_checkpointing": checkpointing,
                },
                "data": {
                    "sources": [str(examples)],
                    "eval_sources": [str(examples)],
                    "max_length": 96,
                    "pack_samples": packed,
                    "workers": 1,
                },
                "samples": {"prompts": ["What?"], "max_new_tokens": 4},
                "strategy": {"dtype": "fp32", "device": "cpu"},
                "console": {"enabled": False},
            },
            recorder,
        )
        expected = "sdpa" if implementation == "sdpa" else "documents"
        assert trainer.model.config._attn_implementation == expected  # type: ignore[union-attr]
        numbers = [(m.get("loss"), m.get("grad_norm"), m.get("eval/examples/loss")) for m in recorder.metrics]
        answered = (tmp_path / implementation / "samples.jsonl").read_text()
        seen[implementation] = answered, [number for line in numbers for number in line if number is not None]
    assert seen["auto"][0] == seen["sdpa"][0]
    assert len(seen["auto"][1]) > 6 and seen["auto"][1] == pytest.approx(seen["sdpa"][1], rel=1e-4)
