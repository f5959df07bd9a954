"""Attention over packed batches: right for every family of models, by length instead of by mask, and sdpa elsewhere."""

from __future__ import annotations

import copy
import itertools
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hooktrain_hf import attention, document_attention, half_attention
from hooktrain_hf.attention import install
from hooktrain_hf.model import HFModelConfig, build_model
from hooktrain_sft.collate import collate_flat, collate_stacked, document_keys
from hypothesis import given, settings
from hypothesis import strategies as st

from hooktrain import ModelError, World
from hooktrain.testing import Recorder, train

VOCABULARY = 61
LENGTHS = (5, 9, 9, 1, 21, 2)
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
BOTH = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 7}
LATENT = {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("documents", SMALL),
    "Qwen2": ("documents", {**SMALL, **BOTH, "use_sliding_window": True}),
    "Qwen3": ("documents", {**SMALL, "head_dim": 8}),
    "Qwen3Moe": ("documents", {**SMALL, **EXPERTS, "head_dim": 8}),
    "Gemma": ("documents", {**SMALL, "head_dim": 8}),
    "Gemma2": (
        "documents_eager",
        {**SMALL, **BOTH, "head_dim": 8, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    ),
    "Gemma3": ("documents", {**SMALL, **BOTH, "head_dim": 8, "query_pre_attn_scalar": 8}),
    "Mistral": ("documents", {**SMALL, "sliding_window": 7, "head_dim": 8}),
    "Ministral": ("documents", {**SMALL, **BOTH, "head_dim": 8}),
    "Mixtral": ("documents", {**SMALL, "sliding_window": 7, "num_local_experts": 4}),
    "Phi": ("documents", SMALL),
    "Phi3": ("documents", {**SMALL, "sliding_window": 7}),
    "GPTNeoX": ("documents", {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}),
    "GPT2": ("documents", GPT2),
    "OPT": (
        "documents",
        {
            **{k: v for k, v in SMALL.items() if k != "intermediate_size"},
            "ffn_dim": 48,
            "word_embed_proj_dim": 32,
            "init_std": 0.3,
        },
    ),
    "SmolLM3": ("documents", {**SMALL, **BOTH, "use_sliding_window": True, "no_rope_layers": [1, 0]}),
    "Granite": ("documents", {**SMALL, "attention_multiplier": 0.3, "logits_scaling": 2.0}),
    "Cohere": ("documents", SMALL),
    "Cohere2": ("documents", {**SMALL, **BOTH}),
    "GptOss": ("documents_eager", {**SMALL, **BOTH, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "Olmo2": ("documents", SMALL),
    "Olmo3": ("documents", {**SMALL, **BOTH}),
    "Starcoder2": ("documents", {**SMALL, "sliding_window": 7}),
    "DeepseekV3": (
        "documents",
        {**SMALL, **LATENT, **ROUTED, "v_head_dim": 4, "head_dim": 8, "first_k_dense_replace": 1},
    ),
    "MiniCPM3": ("documents", {**SMALL, **LATENT, "v_head_dim": 24}),
    "StableLm": ("sdpa", SMALL),  # without the interface
    "GPTJ": ("eager", {**GPT2, "rotary_dim": 8}),
}
HYBRIDS: dict[str, dict[str, Any]] = {
    "Mamba": {**SMALL, "state_size": 4},
    "FalconH1": {**SMALL, "head_dim": 8, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
    "GraniteMoeHybrid": {
        **SMALL,
        "layer_types": ["mamba", "attention"],
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "num_local_experts": 0,
    },
    "Qwen3Next": {**SMALL, **EXPERTS, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"]},
    "Lfm2": {**SMALL, "layer_types": ["conv", "full_attention"], "block_ff_dim": 48},
    "RecurrentGemma": {**SMALL, "lru_width": 32, "attention_window_size": 7, "num_hidden_layers": 3},
}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(document_attention, "BLOCK", 4)
    attention._tell_once.cache_clear()
    yield


def make(family: str, config: dict[str, Any], implementation: str | None = None) -> Any:
    """A tiny model with random weights, in evaluation mode."""
    torch.manual_seed(0)
    made: Any = getattr(transformers, f"{family}{'Text' if family == 'Gemma3' else ''}Config")(**config)
    kind: Any = getattr(transformers, f"{family}LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM")
    model = kind._from_config(made, attn_implementation=implementation).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sinks" in name:
                parameter.normal_()
    return model


def documents(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def flat(texts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """One row of them all, as ``collate_flat`` makes it."""
    positions = [list(range(len(text))) for text in texts]
    ids, places = (torch.tensor([list(itertools.chain(*parts))]) for parts in (texts, positions))
    return {"input_ids": ids, "position_ids": places, **document_keys(map(len, texts))}


def logits(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """The model's logits, shape (rows * tokens, vocabulary)."""
    return model(**batch, use_cache=False).logits.flatten(0, 1)  # type: ignore[no-any-return]


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


# --------------------------------------------------------------------------------------------------- right for each


@pytest.mark.parametrize("family", FAMILIES)
def test_documents_give_what_they_give_alone(family: str) -> None:
    expected, config = FAMILIES[family]
    model = make(family, config)
    texts = documents(LENGTHS)
    weights = torch.randn(sum(LENGTHS), VOCABULARY, generator=torch.Generator().manual_seed(1))
    alone = torch.cat([logits(model, {"input_ids": torch.tensor([text])}) for text in texts])
    (alone * weights).sum().backward()
    wanted = gradients(model)

    install(model, "auto")
    assert attention._decoder(model).config._attn_implementation == expected
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
    install(model, "auto")
    texts, others = documents(LENGTHS), documents(LENGTHS, seed=1)
    first = sum(LENGTHS[:3])
    with torch.no_grad():
        one, other = logits(model, flat(texts)), logits(model, flat([*others[:3], *texts[3:]]))
    assert not torch.equal(one[:first], other[:first])
    assert torch.equal(one[first:], other[first:])


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "documents"])
@pytest.mark.parametrize("training", [False, True])
def test_documents_are_kept_apart_for_callers_that_do_not_speak_of_a_cache(implementation: str, training: bool) -> None:
    """transformers does not look for restarting positions while it fills a cache, which is its default."""
    model = make("Llama", SMALL, None if implementation == "documents" else implementation).train(training)
    install(model, implementation)
    texts = documents(LENGTHS)
    alone = torch.cat([logits(model, {"input_ids": torch.tensor([text])}) for text in texts])
    batch = flat(texts)
    if implementation != "documents":
        batch = {name: batch[name] for name in ("input_ids", "position_ids")}
    torch.testing.assert_close(model(**batch).logits.flatten(0, 1), alone, rtol=1e-4, atol=1e-4)


def test_a_cache_that_is_asked_for_is_filled() -> None:
    model = make("Llama", SMALL)
    install(model, "auto")
    ids = torch.tensor([[5, 6, 7]])
    assert model(ids).past_key_values is None
    assert model(ids, use_cache=True).past_key_values.get_seq_length() == 3
    assert model.generate(ids, max_new_tokens=4, do_sample=False).shape == (1, 7)


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "documents"])
def test_explicit_implementations_stay_what_they_are(implementation: str) -> None:
    model = make("Llama", SMALL, None if implementation == "documents" else implementation)
    install(model, implementation)
    assert model.config._attn_implementation == implementation
    texts, others = documents(LENGTHS), documents(LENGTHS, seed=1)
    with torch.no_grad():
        one, other = logits(model, flat(texts)), logits(model, flat([others[0], *texts[1:]]))
    assert torch.equal(one[LENGTHS[0] :], other[LENGTHS[0] :]) and not torch.equal(one, other)


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "Mistral"])
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_any_lengths_in_any_rows(family: str, data: st.DataObject) -> None:
    """Flat and stacked, against the dense mask that transformers builds from position ids."""
    rows = data.draw(st.lists(st.lists(st.integers(1, 13), min_size=1, max_size=5), min_size=1, max_size=3))
    made = []
    for number, lengths in enumerate(rows):
        batch = flat(documents(lengths, seed=number))
        ids, places = (batch[name][0].numpy() for name in ("input_ids", "position_ids"))
        made.append({"input_ids": ids, "labels": ids, "position_ids": places})
    model, dense = _pair(family)
    for collate in (collate_flat, collate_stacked):
        batch = collate(made)
        batch.pop("labels")
        batch.pop("tokens", None)
        plain = {name: batch[name] for name in ("input_ids", "position_ids")}
        with torch.no_grad():
            torch.testing.assert_close(logits(model, batch), logits(dense, plain), rtol=1e-4, atol=1e-4)


_made: dict[str, tuple[Any, Any]] = {}


def _pair(family: str) -> tuple[Any, Any]:
    """A model that takes documents one by one, and its twin that does not."""
    if family not in _made:
        dense = make(family, FAMILIES[family][1])
        model = copy.deepcopy(dense)
        install(model, "auto")
        _made[family] = model, dense
    return _made[family]


# ------------------------------------------------------------------------------------------------ refusals, fallbacks


@pytest.mark.parametrize("family", HYBRIDS)
def test_layers_that_carry_a_state_take_no_two_documents_in_a_row(family: str) -> None:
    model = make(family, HYBRIDS[family])
    install(model, "auto")
    with pytest.raises(
        ModelError, match=r"2 documents in 1 row\(s\).*carry what they have read.*micro_batch_size to 1"
    ):
        model(**flat(documents((5, 4))))
    single = flat(documents((5,)))
    with torch.no_grad():
        torch.testing.assert_close(logits(model, single), logits(model, {"input_ids": single["input_ids"]}))


def test_a_hybrid_without_recurrent_layers_is_like_any_other() -> None:
    model = make("GraniteMoeHybrid", {**HYBRIDS["GraniteMoeHybrid"], "layer_types": ["attention", "attention"]})
    install(model, "auto")
    texts = documents((5, 4))
    alone = torch.cat([logits(model, {"input_ids": torch.tensor([text])}) for text in texts])
    torch.testing.assert_close(logits(model, flat(texts)), alone, rtol=1e-4, atol=1e-4)


def test_a_pattern_that_needs_a_mask_gets_one(caplog: pytest.LogCaptureFixture) -> None:
    """Gemma 3 as an encoder sees both ways: only a mask says so, and documents are still kept apart."""
    model = make("Gemma3", {**FAMILIES["Gemma3"][1], "use_bidirectional_attention": True})
    texts = documents(LENGTHS)
    alone = torch.cat([logits(model, {"input_ids": torch.tensor([text])}) for text in texts])
    install(model, "auto")
    with caplog.at_level(logging.WARNING):
        packed = logits(model, flat(texts))
        logits(model, flat(texts))
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)
    assert [r.getMessage() for r in caplog.records if "grow with the square" in r.getMessage()] == [
        "attention takes a mask of tokens by tokens, since the model attends in a pattern that only a mask can express;"
        " memory and time grow with the square of the tokens in a micro-batch"
    ]


def test_chunks_are_not_taken_for_windows() -> None:
    from transformers.masking_utils import chunked_causal_mask_function, sliding_window_causal_mask_function

    known = {"kv_length": 64, "local_size": 7, "allow_is_causal_skip": True}
    sliding = attention._pattern({**known, "mask_function": sliding_window_causal_mask_function(7)})
    chunked = attention._pattern(
        {**known, "mask_function": chunked_causal_mask_function(7, torch.zeros(1, dtype=torch.long))}
    )
    assert sliding == (True, 7) and chunked == (False, 7)


def test_a_model_without_the_interface_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    model = make("StableLm", SMALL)
    install(model, "auto")
    with caplog.at_level(logging.WARNING), torch.no_grad():
        logits(model, flat(documents((5,))))
        assert not caplog.records, "a single document needs no mask"
        logits(model, flat(documents((5, 4))))
        logits(model, flat(documents((5, 4))))
    assert [r.getMessage()[:90] for r in caplog.records] == [
        "attention takes a mask of tokens by tokens, since StableLmForCausalLM does not use transfo"
    ]
    with pytest.raises(ModelError, match="given 'documents', but StableLmForCausalLM does not use"):
        install(make("StableLm", SMALL), "documents")


def test_arguments_that_an_eager_model_alone_knows_are_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no kernel here obeys is computed by the model's own function, with a mask, instead of being dropped."""
    model, _ = _pair("Gemma2")
    texts = documents(LENGTHS)
    with torch.no_grad():
        expected = logits(model, flat(texts))
        monkeypatch.setattr(attention, "_UNDERSTOOD", attention._UNDERSTOOD - {"softcap"})
        torch.testing.assert_close(logits(model, flat(texts)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("more", [{}, {"attention_mask": torch.ones(1, 9, dtype=torch.long)}])
def test_lengths_that_are_not_those_of_the_tokens_are_refused(more: dict[str, Any]) -> None:
    model, _ = _pair("Llama")
    batch = {**flat(documents((5, 4))), **more}
    if not more:
        batch["document_lengths"] = (5, 5)
    with pytest.raises(ModelError, match=r"batch: given document_lengths that sum to .* for 1 row\(s\) of 9 tokens"):
        model(**batch)
    with torch.no_grad():  # and nothing of it is left behind
        plain = {"input_ids": batch["input_ids"]}
        torch.testing.assert_close(logits(model, plain), logits(_pair("Llama")[1], plain))


# ------------------------------------------------------------------------------------------------ elsewhere it is sdpa


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "Mistral"])
def test_without_lengths_everything_is_as_it_was(family: str) -> None:
    model, dense = _pair(family)
    ids = torch.tensor(documents((12, 12)))
    left = torch.ones(2, 12, dtype=torch.long)
    left[0, :5] = 0
    packed = flat(documents((5, 7)))
    for batch in (
        {"input_ids": ids},
        {"input_ids": ids, "attention_mask": left},
        {name: packed[name] for name in ("input_ids", "position_ids")},
    ):
        with torch.no_grad():
            assert torch.equal(logits(model, batch), logits(dense, batch))


@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_is_as_it_was(family: str, cache: str) -> None:
    model, dense = _pair(family)
    ids = torch.tensor(documents((9, 9)))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    wanted, found = (
        m.generate(ids, attention_mask=mask, max_new_tokens=9, do_sample=False, cache_implementation=cache)
        for m in (dense, model)
    )
    assert torch.equal(found, wanted)


def test_an_export_does_not_know_our_name(tmp_path: Path, folder: Path) -> None:
    model = build_model(HFModelConfig(name_or_path=str(folder)), None, World())
    assert model.config._attn_implementation == "documents"
    model.save_pretrained(tmp_path / "out")
    assert "documents" not in (tmp_path / "out" / "config.json").read_text()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("wanted", ["sdpa", "eager"])
def test_build_model_obeys(folder: Path, wanted: str) -> None:
    model = build_model(HFModelConfig(name_or_path=str(folder), attn_implementation=wanted), None, World())
    assert model.config._attn_implementation == wanted


def test_copies_and_pickles(tmp_path: Path) -> None:
    model, _ = _pair("Llama")
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    with torch.no_grad():
        assert torch.equal(logits(again, flat(documents(LENGTHS))), logits(model, flat(documents(LENGTHS))))


# ---------------------------------------------------------------------------------------------- what surrounds a model


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "Mistral"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_activation_checkpointing_repeats_the_same(family: str, dropout: float) -> None:
    found = []
    for checkpointing in (False, True):
        model = make(family, {**FAMILIES[family][1], "attention_dropout": dropout})
        install(model, "auto")
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
    install(model, "auto")
    batch = flat(documents(LENGTHS))
    with torch.no_grad():
        plain = logits(model, batch)
        model.train()
        first, second = logits(model, batch), logits(model, batch)
    assert torch.equal(plain, logits(model.eval(), batch)) and not torch.equal(first, second)
    value, seen = torch.ones(1, 1, 4000, 1), torch.ones(4000, 4000, dtype=torch.bool)
    weighted = document_attention._weighted(
        torch.zeros_like(value), torch.zeros_like(value), value, seen, document_attention.Scores(1.0, dropout=0.25)
    )
    assert float(weighted.mean()) == pytest.approx(1, abs=1e-3)
    assert float(weighted.std()) == pytest.approx((0.25 / 0.75 / 4000) ** 0.5, rel=0.1)


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "Gemma3"])
def test_bf16_autocast(family: str) -> None:
    model, dense = _pair(family)
    texts = documents(LENGTHS)
    with torch.no_grad():
        exact = logits(dense, {name: flat(texts)[name] for name in ("input_ids", "position_ids")})
        with torch.autocast("cpu", torch.bfloat16):
            close = logits(model, flat(texts)).float()
    assert float((close - exact).norm() / exact.norm()) < 0.05


@pytest.mark.parametrize("what", ["model", "layers"])
def test_compiled_models_fall_back(what: str) -> None:
    model = copy.deepcopy(_pair("Llama")[0])
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
    model, texts = copy.deepcopy(_pair("Llama")[0]), documents(LENGTHS)
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
        copy.deepcopy(_pair("Llama")[0]), peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    )
    with pytest.raises(ModelError, match="let no adapter put prompts in front of several documents"):
        prompted(**flat(texts))
    assert prompted(**flat(texts[:1])).logits.shape[1] == 3 + LENGTHS[0]


@pytest.mark.parametrize(("packed", "checkpointing"), [(True, True), (False, False)])
def test_a_run_learns_the_same_document_by_document(
    tmp_path: Path, folder: Path, packed: bool, checkpointing: bool
) -> None:
    """Whole runs, packed and padding-free, with a worker, an evaluation and sample answers, against sdpa and its mask."""
    rows = tmp_path / "rows.jsonl"
    said = {"role": "user", "content": "What is the answer?"}
    answers = ["Forty-two it is.", "What?", "The answer is the answer.", "It is forty-two, is it?", "No.", "user it is"]
    rows.write_text(
        "".join(json.dumps({"messages": [said, {"role": "assistant", "content": a}]}) + "\n" for a in answers)
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
                    "sources": [str(rows)],
                    "eval_sources": [str(rows)],
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
        numbers = [(m.get("loss"), m.get("grad_norm"), m.get("eval/rows/loss")) for m in recorder.metrics]
        answered = (tmp_path / implementation / "samples.jsonl").read_text()
        seen[implementation] = answered, [number for line in numbers for number in line if number is not None]
    assert seen["auto"][0] == seen["sdpa"][0]
    assert len(seen["auto"][1]) > 6 and seen["auto"][1] == pytest.approx(seen["sdpa"][1], rel=1e-4)


# ----------------------------------------------------------------------------------------------------- waits, kernels


def test_nothing_is_read_from_the_device() -> None:
    """The meta device has no values: whatever wants one fails, as sdpa does, where a GPU would be waited for."""
    texts = documents(LENGTHS)

    def on_device(implementation: str | None, config: dict[str, Any], family: str) -> torch.Tensor:
        model = make(family, config).to("meta").train()
        if implementation is not None:
            install(model, implementation)
        batch = {n: v.to("meta") if isinstance(v, torch.Tensor) else v for n, v in flat(texts).items()}
        model.gradient_checkpointing_enable({"use_reentrant": False})
        made = logits(model, batch)
        made.sum().backward()
        return made

    for family in ("Llama", "Gemma2", "Gemma3", "Mistral"):
        assert on_device("auto", FAMILIES[family][1], family).shape == (sum(LENGTHS), VOCABULARY)
    with pytest.raises(RuntimeError, match="meta"):
        on_device("sdpa", SMALL, "Llama")


def test_flash_kernels_are_told_where_documents_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through transformers' own flash path, with a kernel of our own behind it, which gets offsets and whole numbers."""
    from transformers import modeling_flash_attention_utils as flash

    longest: list[Any] = []

    def kernel(q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: Any, **more: Any) -> Any:
        longest.append(max_seqlen_q)
        assert more["causal"] and cu_seqlens_q.dtype == torch.int32 and torch.equal(cu_seqlens_q, cu_seqlens_k)
        parts = [
            torch.nn.functional.scaled_dot_product_attention(
                *(t[begin:end].transpose(0, 1)[None] for t in (q, k, v)), is_causal=True, enable_gqa=True
            )[0].transpose(0, 1)
            for begin, end in itertools.pairwise(cu_seqlens_q.tolist())
        ]
        return torch.cat(parts)

    def found(*args: Any, **kwargs: Any) -> Any:
        return (None, kernel, None, None, None), (
            lambda max_seqlen_q=None, is_causal=None, **more: {"max_seqlen_q": max_seqlen_q, "causal": is_causal},
            None,
        )

    monkeypatch.setattr(flash, "lazy_import_flash_attention", found)
    model = make("Llama", SMALL)
    texts = documents(LENGTHS)
    alone = torch.cat([logits(model, {"input_ids": torch.tensor([text])}) for text in texts])
    model.config._attn_implementation_internal = "flash_attention_2"
    install(model, "flash_attention_2")
    torch.testing.assert_close(logits(model, flat(texts)), alone, rtol=1e-4, atol=1e-4)
    assert longest == [21, 21] and all(type(value) is int for value in longest)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("fault", ["", "wrong", "refuses"])
def test_a_variable_length_kernel_is_believed_when_it_is_right(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, window: int | None, fault: str
) -> None:
    """The dispatch around torch's kernel, which runs on no processor, with one that computes the same."""
    used = []

    def kernel(
        q: Any, k: Any, v: Any, begins: Any, ends: Any, *_: Any, scale: float, window_size: Any, **__: Any
    ) -> Any:
        used.append(window_size)
        if fault == "refuses":
            raise RuntimeError("no kernel image")
        lengths = tuple(torch.diff(begins).tolist())
        seen = document_attention.Visible(
            document_attention.Documents(lengths), None if window_size[0] < 0 else window_size[0] + 1
        )
        parts = (t.transpose(0, 1)[None] for t in (q, k, v))
        made = torch.nn.functional.scaled_dot_product_attention(
            *parts, attn_mask=seen.dense(1, q.device), scale=scale, enable_gqa=True
        )
        return made[0].transpose(0, 1) + (fault == "wrong")

    monkeypatch.setattr(document_attention, "_varlen_kernel", lambda: kernel)
    monkeypatch.setattr(document_attention, "_has_kernel", lambda *args: True)
    monkeypatch.setattr(document_attention, "_trusted", {})
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 10, 8), torch.randn(2, 2, 10, 8), torch.randn(2, 2, 10, 8)
    visible = document_attention.Visible(document_attention.Documents((4, 6, 10), torch.tensor([0, 4, 10, 20])), window)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=visible.dense(2, query.device), enable_gqa=True
    )
    for _ in range(3):
        made = document_attention.attend(query, key, value, visible, document_attention.Scores(8**-0.5))
        torch.testing.assert_close(made.transpose(1, 2), expected)
    assert len(used) == (1 if fault else 3)
    assert len([r for r in caplog.records if "is not used here" in r.getMessage()]) == bool(fault)


MEMORY = """
import os, resource, torch, transformers
from hooktrain_hf.attention import install
from hooktrain_sft.collate import document_keys
torch.set_num_threads(1)
sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=1,
    num_key_value_heads=1, head_dim=16, max_position_embeddings=1 << 15)
for family, more, longest in (("Llama", {}, 16384), ("Mistral", {"sliding_window": 512}, 16384),
        ("Gemma2", {"sliding_window": 512}, 1024)):
    config, kind = (getattr(transformers, family + name) for name in ("Config", "ForCausalLM"))
    if child := os.fork():  # imports take longer than all the rest
        assert os.waitpid(child, 0)[1] == 0
        continue
    model = kind(config(**sizes, **more))
    install(model, "auto")
    model.train().gradient_checkpointing_enable(dict(use_reentrant=False))
    peak = []
    for tokens in (512, 2048, 8192, 16384):
        length = min(tokens, longest)
        positions = (torch.arange(tokens) % length)[None]
        batch = dict(input_ids=positions % 64, position_ids=positions, **document_keys([length] * (tokens // length)))
        model.model(**batch, use_cache=False).last_hidden_state.sum().backward()
        peak.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    print(family, *peak, flush=True)
    os._exit(0)
"""


@pytest.mark.usefixtures("real_starts")
def test_memory_grows_with_the_tokens() -> None:
    """Peak memory in MiB of steps of 512, 2k, 8k and 16k tokens: 16k by 16k scores alone would take 1 GiB for a head."""
    returned = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}  # what is freed goes back, and is not counted
    words = [sys.executable, "-c", MEMORY]
    lines = subprocess.run(words, capture_output=True, text=True, check=True, env=returned).stdout.splitlines()
    assert len(lines) == 3
    for line in lines:
        least, _, first, second = (int(size) for size in line.split()[1:])
        assert second - least < 2.5 * (first - least) + 16 and second - least < 150, line


# ------------------------------------------------------------------------------- short documents in bf16 on a processor


@pytest.mark.parametrize("shape", [(1, 4, 4, 7, 8), (3, 4, 2, 33, 16), (1, 6, 1, 1, 8), (2, 9, 3, 130, 64)])
def test_short_documents_in_bf16(shape: tuple[int, ...]) -> None:
    """Beside torch's own kernel, both measured against float64."""
    count, heads, key_heads, tokens, channels = shape
    generator = torch.Generator().manual_seed(0)
    states = [
        torch.randn(count, tokens, number, channels, generator=generator).bfloat16().transpose(1, 2)
        for number in (heads, key_heads, key_heads, heads)
    ]

    def run(function: Any, dtype: torch.dtype) -> list[torch.Tensor]:
        *inputs, gradient = (t.to(dtype).detach().requires_grad_() for t in states)
        made = function(*inputs)
        made.backward(gradient.detach())
        return [made.detach(), *(t.grad for t in inputs)]

    def torchs(q: Any, k: Any, v: Any) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    exact = run(torchs, torch.float64)
    ours = run(lambda q, k, v: half_attention.attend_short(q, k, v, channels**-0.5), torch.bfloat16)
    theirs = run(torchs, torch.bfloat16)
    for found, other, expected in zip(ours, theirs, exact, strict=True):
        error, allowed = ((t.double() - expected).norm() for t in (found, other))
        assert found.dtype == torch.bfloat16 and found.shape == expected.shape
        assert error <= 2 * allowed + 1e-6


def test_bf16_runs_take_the_short_way_and_long_documents_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counted(q: Any, *others: Any) -> Any:
        seen.append(q.shape[2])
        return half_attention.attend_short(q, *others)

    monkeypatch.setattr(document_attention, "attend_short", counted)
    monkeypatch.setattr(half_attention, "_LONGEST", 10)
    model = make("Llama", SMALL).train()
    install(model, "auto")
    batch = flat(documents(LENGTHS))
    exact = logits(model, batch)
    assert not seen
    with torch.autocast("cpu", torch.bfloat16):
        found = logits(model, batch)
        assert seen and set(seen) == {length for length in LENGTHS if length <= 10}
        seen.clear()
        with torch.no_grad():
            logits(model, batch)
        assert not seen
    assert (found.float() - exact).norm() < 0.02 * exact.norm()
    found.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
