"""Training with adapters: the same results as PEFT alone, and its cost."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from hooktrain import hookimpl
from hooktrain.testing import Recorder
from tests.facts import facts
from tests.plugins.peft.conftest import difference, logits

Run = Callable[..., Any]


class Batches:
    """Keeps the batches of the model."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    @hookimpl
    def on_microbatch_start(self, batch: dict[str, torch.Tensor]) -> None:
        self.seen.append(batch)


def test_a_run_equals_a_hand_written_loop_with_peft(run: Run, bases: dict[str, Path]) -> None:
    """Packed sequences, fused head, gradient clipping and all: the same losses and the same adapter."""
    batches, recorder = Batches(), Recorder()
    trainer = run(batches, recorder, peft={"type": "lora", "r": 4, "alpha": 6, "target_modules": ["q_proj", "up_proj"]})

    torch.manual_seed(42)
    base = AutoModelForCausalLM.from_pretrained(bases["tied"], dtype=torch.float32)
    torch.manual_seed(42)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    losses = []
    for batch in batches.seen:
        inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
        out = model(**inputs, use_cache=False).logits[:, :-1]  # with a cache documents would see each other
        loss = torch.nn.functional.cross_entropy(out.flatten(0, 1), batch["labels"][:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert [line["loss"] for line in recorder.metrics] == pytest.approx(losses, rel=1e-5)
    ours = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    theirs = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-6)


def test_the_base_stays_as_it_is_and_takes_no_memory_of_optimizer_or_gradients(
    run: Run, bases: dict[str, Path]
) -> None:
    class NoGradients:
        seen = 0

        @hookimpl
        def on_optimizer_step_start(self, trainer: Any) -> None:
            for name, p in trainer.model.named_parameters():
                assert (p.grad is not None) == ("lora_" in name), name
                self.seen += 1

    watch = NoGradients()
    trainer = run(watch)
    assert watch.seen
    before = AutoModelForCausalLM.from_pretrained(bases["tied"]).state_dict()
    base = {n: p for n, p in trainer.model.get_base_model().state_dict().items() if "lora_" not in n}
    for name, value in base.items():
        assert torch.equal(value, before[name.replace(".base_layer", "")]), name
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    adapters = {id(p) for n, p in trainer.model.named_parameters() if "lora_" in n}
    assert held == adapters == {id(p) for p in trainer.optimizer.state}
    assert len(adapters) == 2 * 7 * 2, "every linear layer of two blocks, and no head"
    moved = [n for n, p in trainer.model.named_parameters() if "lora_B" in n and bool(p.any())]
    assert len(moved) == 14


def test_without_a_section_nothing_happens(run: Run, recipe: dict[str, Any]) -> None:
    recipe.pop("peft")
    plain, off = run(), run(peft={"type": None})
    assert not isinstance(plain.model, PeftModel) and not isinstance(off.model, PeftModel)
    assert all(p.requires_grad for p in plain.model.parameters())


def test_an_adapter_on_the_head_is_trained_and_counted(run: Run, bases: dict[str, Path]) -> None:
    """The loss must not use the head's own weight instead."""
    recorder = Recorder()
    model = {"name_or_path": str(bases["untied"])}
    trainer = run(recorder, model=model, peft={"type": "lora", "r": 4, "target_modules": ["lm_head"]})
    assert recorder.metrics[-1]["loss"] < recorder.metrics[0]["loss"] - 0.05
    (b,) = (p for n, p in trainer.model.named_parameters() if "lora_B" in n)
    assert bool(b.any())


@pytest.mark.parametrize("key", ["use_dora", "use_rslora"])
def test_variants_of_lora(run: Run, key: str) -> None:
    recorder = Recorder()
    trainer = run(recorder, peft={"type": "lora", "r": 4, key: True})
    assert recorder.metrics[-1]["loss"] < recorder.metrics[0]["loss"]
    assert getattr(trainer.model.active_peft_config, key) is True
    if key == "use_dora":
        assert any("magnitude" in n and p.requires_grad for n, p in trainer.model.named_parameters())


def test_activation_checkpointing_changes_no_gradient(run: Run, bases: dict[str, Path]) -> None:
    """The embedding is frozen, so nothing before the first adapter asks for gradients."""
    plain, saving = Recorder(), Recorder()
    one = run(plain)
    other = run(saving, model={"name_or_path": str(bases["tied"]), "activation_checkpointing": True})
    assert [m["grad_norm"] for m in plain.metrics] == [m["grad_norm"] for m in saving.metrics]
    first = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"
    assert bool(other.model.get_parameter(first).any())
    assert torch.equal(one.model.get_parameter(first), other.model.get_parameter(first))


@pytest.mark.parametrize("autocast", [pytest.param("fp32", marks=pytest.mark.thorough), "bf16"])
@pytest.mark.parametrize(
    "saved", [(), pytest.param(("embed_tokens",), marks=pytest.mark.thorough), ("norm", "lm_head")]
)
def test_a_base_in_half_precision_has_an_adapter_in_full(
    run: Run, bases: dict[str, Path], autocast: str, saved: tuple[str, ...]
) -> None:
    """Copies of complete modules too: bf16 would lose their small updates."""
    recorder = Recorder()
    trainer = run(
        recorder,
        model={"name_or_path": str(bases["untied"]), "weights_dtype": "bf16"},
        strategy={"dtype": autocast, "device": "cpu"},
        peft={"type": "lora", "r": 4, "modules_to_save": list(saved)},
    )
    kinds = {p.requires_grad: set() for p in trainer.model.parameters()}
    for p in trainer.model.parameters():
        kinds[p.requires_grad].add(p.dtype)
    assert kinds == {True: {torch.float32}, False: {torch.bfloat16}}
    assert recorder.metrics[-1]["loss"] < recorder.metrics[0]["loss"]
    assert all(bool(p.grad is None or p.grad.isfinite().all()) for p in trainer.model.parameters())


@pytest.mark.parametrize(
    "method",
    ["ia3", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("ln_tuning", "loha", "randlora", "vera"))],
)
@pytest.mark.parametrize("autocast", ["fp32", "bf16"])
def test_other_methods_on_a_base_in_half_precision(
    run: Run, bases: dict[str, Path], method: str, autocast: str
) -> None:
    recorder = Recorder()
    trainer = run(
        recorder,
        model={"name_or_path": str(bases["untied"]), "weights_dtype": "bf16"},
        strategy={"dtype": autocast, "device": "cpu"},
        peft={"type": method},
    )
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    assert all(line["grad_norm"] > 0 for line in recorder.metrics)


def test_tied_head_and_embedding_are_trained_as_one(run: Run) -> None:
    trainer = run(peft={"type": "lora", "r": 4, "modules_to_save": ["embed_tokens"]})
    base = trainer.model.get_base_model()
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    assert embedding.weight is head.weight and embedding.weight.requires_grad
    apart = run(
        peft={"type": "lora", "r": 4, "modules_to_save": ["embed_tokens"], "config": {"ensure_weight_tying": False}}
    )
    base = apart.model.get_base_model()
    assert base.get_input_embeddings().weight is not base.get_output_embeddings().weight


def test_evaluation_and_samples_use_the_adapter(run: Run, recipe: dict[str, Any]) -> None:
    recorder = Recorder()
    trainer = run(
        recorder,
        data={**recipe["data"], "pack_samples": False, "eval_sources": recipe["data"]["sources"]},
        train_iters=24,
        eval_at_start=True,
        samples={"prompts": ["What is the answer?"], "max_new_tokens": 4},
    )
    (name,) = (key for key in recorder.metrics[0] if key.startswith("eval/") and key.endswith("/loss"))
    assert recorder.metrics[-1][name] < recorder.metrics[0][name] - 0.5
    assert (trainer.run_dir / "samples.jsonl").read_text().count("\n") == 2
    base = trainer.model.get_base_model()
    assert base.generation_config.max_new_tokens != 4 and "generation_config" not in vars(trainer.model)
    with trainer.model.disable_adapter():
        bare = logits(trainer.model)
    assert difference(logits(trainer.model), bare) > 0.1


def test_the_adapter_is_described(run: Run, recipe: dict[str, Any]) -> None:
    recorder = Recorder()
    run(recorder, optimizer={"lr": 2e-5})
    messages = [call["message"] for name, call in recorder.calls if name == "on_message"]
    assert re.search(facts("peft: ", "lora", "r 4", "alpha 8", "14 modules", "LlamaForCausalLM"), messages[0])
    assert re.search(facts("peft: ", "optimizer.lr", "2e-05", "ten times"), messages[1])
