"""What LoRA can be told, on plain and quantized bases: each is trained, resumed, exported, continued and merged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hooktrain_hf import is_quantized
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from hooktrain import ModelError, RecipeError, Trainer
from hooktrain.cli.main import cli
from hooktrain.testing import Recorder
from tests.facts import facts
from tests.plugins.peft.conftest import difference, logits

Run = Callable[..., Any]
EXPORT = {"type": "huggingface", "save_end_of_training": True}
FULL = {"type": "full", "save_every_n_steps": 2, "keep_last": 0}
LORA: dict[str, Any] = {"type": "lora", "r": 4}
LAYERS = {"layers_to_transform": [1], "layers_pattern": "layers"}
VARIANTS: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pattern": {"target_modules": r".*\.layers\.1\..*(q|v)_proj"},
    "layers": {"target_modules": ["q_proj", "v_proj"], "config": LAYERS},
    "modules_to_save": {"modules_to_save": ["lm_head"], "config": {"ensure_weight_tying": False}},
    "rank_pattern": {"config": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 32}}},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "loftq": {"init_lora_weights": "loftq", "config": {"loftq_config": {"loftq_iter": 3}}},
}
CASES = [(name, base) for name in VARIANTS for base in (None, "nf4", "int8") if base or name != "loftq"]
DEFAULT = {("rank_pattern", None), ("loftq", "nf4")}
"""Cases of the default tier; the others are thorough."""


def losses(recorder: Recorder) -> list[float]:
    return [line["loss"] for line in recorder.metrics if "loss" in line]


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


@pytest.mark.parametrize(
    ("name", "base"),
    [case if case in DEFAULT else pytest.param(*case, marks=pytest.mark.thorough) for case in CASES],
)
def test_each_is_trained_resumed_continued_and_merged(
    run: Run, bases: dict[str, Path], tmp_path: Path, name: str, base: str | None
) -> None:
    model = {"name_or_path": str(bases["untied"]), "quantization": base}
    peft = {**LORA, **VARIANTS[name]}
    whole, part = Recorder(), Recorder()
    trainer = run(whole, model=model, peft=peft, checkpoint=[FULL, EXPORT])
    live = logits(trainer.model)
    assert is_quantized(trainer.model) == bool(base)

    first = tmp_path / "run" / "checkpoints" / "step-00000002"
    again = run(
        part, model=model, peft=peft, checkpoint=[FULL], run_dir=str(tmp_path / "b"), trainer={"resume_from": first}
    )
    assert losses(part) == losses(whole)[2:]
    found = trained(again.model)
    assert all(torch.equal(value, found[key]) for key, value in trained(trainer.model).items())

    export = tmp_path / "run" / "export"
    continued = run(
        model=model, peft={"adapter": str(export)}, optimizer={"lr": 1e-30}, run_dir=str(tmp_path / "c"), train_iters=1
    )
    assert difference(live, logits(continued.model)) < 1e-5

    words = ["export", str(tmp_path / "run"), "--merge", "--dtype", "fp32", "--output", str(tmp_path / "merged")]
    written = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert written.exit_code == 0, written.output
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert float((logits(merged) - live).abs().max()) <= 1e-3
    if not base:
        plain = AutoModelForCausalLM.from_pretrained(bases["untied"])
        assert difference(live, logits(PeftModel.from_pretrained(plain, export))) < 1e-5


def weight_error(run: Run, model: dict[str, Any], folder: Path, **peft: Any) -> float:
    """How far the weights of a layer and its new adapter are from the base's, as a share of their norm."""
    made = run(
        model=model, peft={**LORA, "alpha": 8, **peft}, run_dir=str(folder), train_iters=1, optimizer={"lr": 1e-30}
    ).model
    layer: Any = made.get_base_model().model.layers[0].mlp.up_proj
    plain: Any = AutoModelForCausalLM.from_pretrained(model["name_or_path"]).model.layers[0].mlp.up_proj
    with torch.no_grad():
        found = layer(torch.eye(plain.in_features)).T.float()
    return difference(plain.weight.detach(), found)


def test_they_begin_nearer_to_the_base_than_a_quantized_one_alone(
    run: Run, bases: dict[str, Path], tmp_path: Path
) -> None:
    """The scale is twice the rank, which an adapter that is not divided by it would not survive."""
    model = {"name_or_path": str(bases["untied"]), "quantization": {"type": "nf4", "double": False}}
    plain = weight_error(run, model, tmp_path / "a")
    pissa = weight_error(run, model, tmp_path / "b", init_lora_weights="pissa")
    loftq = weight_error(run, model, tmp_path / "c", init_lora_weights="loftq")
    assert pissa < 0.95 * plain and loftq < 0.9 * plain


@pytest.mark.parametrize(
    ("model", "peft", "message"),
    [
        ({"quantization": "nf4"}, {"init_lora_weights": "mica"}, ["peft.init_lora_weights", "mica", "pissa"]),
        ({}, {"init_lora_weights": "loftq"}, ["peft.init_lora_weights", "loftq", "model.quantization", "nf4"]),
        ({}, {"config": {"loftq_config": {"loftq_iter": 2}}}, ["peft.config.loftq_config", "loftq"]),
        (
            {"quantization": "nf4"},
            {"init_lora_weights": "loftq", "config": {"loftq_config": {"loftq_bits": 8}}},
            ["peft.config.loftq_config", "loftq_bits", "model.quantization"],
        ),
        ({}, {"keep": {"a/b": "x"}}, ["peft.keep.a/b", "letters"]),
        ({}, {"keep": {"old": "nowhere"}}, ["peft.keep.old", "nowhere", "adapter_config.json"]),
        ({}, {"keep": {"old": "nowhere"}, "merge_on_export": True}, ["peft.keep", "merge_on_export"]),
    ],
)
def test_what_cannot_be_is_refused_before_weights_are_read(
    run: Run, tmp_path: Path, model: dict[str, Any], peft: dict[str, Any], message: list[str]
) -> None:
    with pytest.raises(RecipeError, match=facts(*message)):
        run(model={"name_or_path": str(tmp_path / "none"), **model}, peft={**LORA, **peft})


def test_an_adapter_of_loftq_is_refused_on_a_plain_base(run: Run, bases: dict[str, Path], tmp_path: Path) -> None:
    model = {"name_or_path": str(bases["tied"])}
    run(model={**model, "quantization": "nf4"}, peft={**LORA, "init_lora_weights": "loftq"}, checkpoint=[EXPORT])
    with pytest.raises(ModelError, match=facts("peft.adapter", "LoftQ", "model.quantization")):
        run(model=model, peft={"adapter": str(tmp_path / "run" / "export")}, run_dir=str(tmp_path / "other"))


# --------------------------------------------------------------------------------------------- several adapters


def test_an_export_keeps_other_adapters(run: Run, bases: dict[str, Path], tmp_path: Path) -> None:
    run(checkpoint=[EXPORT], run_dir=str(tmp_path / "old"), peft={**LORA, "use_rslora": True})
    old = tmp_path / "old" / "export"
    trainer = run(checkpoint=[{**EXPORT, "save_every_n_steps": 2}], peft={**LORA, "keep": {"old": str(old)}})
    export = tmp_path / "run" / "export"
    assert {path.name for path in (export / "old").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    both: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bases["tied"]), export)
    assert torch.equal(logits(both), logits(trainer.model))
    both.load_adapter(str(export / "old"), "old")
    both.set_adapter("old")
    alone = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bases["tied"]), old)
    assert torch.equal(logits(both), logits(alone))
    assert (export / "step-2" / "old" / "adapter_config.json").is_file()


def test_a_model_from_python_with_two_adapters_is_exported_with_both(
    recipe: dict[str, Any], bases: dict[str, Path], tmp_path: Path
) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    adapted: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(bases["tied"]), config, adapter_name="first")
    adapted.add_adapter("second", LoraConfig(r=3, target_modules=["v_proj"], task_type="CAUSAL_LM"))
    adapted.set_adapter("second")
    before = {name: value.clone() for name, value in adapted.state_dict().items() if ".first." in name}
    rest = {key: value for key, value in recipe.items() if key not in ("model", "peft")}
    named = {"tokenizer": {"name_or_path": str(bases["tied"])}, "checkpoint": [EXPORT]}
    trainer = Trainer({**rest, **named}, model=adapted)
    trainer.run()
    export = tmp_path / "run" / "export"
    assert json.loads((export / "adapter_config.json").read_text())["r"] == 3
    assert json.loads((export / "first" / "adapter_config.json").read_text())["r"] == 2
    after = trainer.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    reloaded: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bases["tied"]), export)
    assert torch.equal(logits(reloaded), logits(trainer.model))
