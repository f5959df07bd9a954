"""Exports of adapters and of merged weights, runs that continue from an adapter, and resumed runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hooktrain import CheckpointError, ModelError
from hooktrain.testing import Recorder
from tests.facts import facts
from tests.killing import killed
from tests.plugins.peft.conftest import difference, logits

Run = Callable[..., Any]
EXPORT = {"type": "huggingface", "save_end_of_training": True}
FULL = {"type": "full", "save_every_n_steps": 2}


def adapter_files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if "token" not in path.name and "chat_template" not in path.name}


# ------------------------------------------------------------------------------------------------- exporting


@pytest.mark.parametrize(
    "more",
    [
        {},
        pytest.param({"use_dora": True}, marks=pytest.mark.thorough),
        {"modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        pytest.param({"config": {"trainable_token_indices": [5, 6]}}, marks=pytest.mark.thorough),
        {"init_lora_weights": "pissa"},
    ],
    ids=str,
)
def test_an_exported_adapter_gives_equal_logits_on_its_base(
    run: Run, bases: dict[str, Path], more: dict[str, Any]
) -> None:
    trainer = run(checkpoint=[EXPORT], peft={"type": "lora", "r": 4, **more})
    folder = trainer.run_dir / "export"
    assert adapter_files(folder) == {"adapter_config.json", "adapter_model.safetensors"}
    torch.manual_seed(123)  # what is random in the making of an adapter must not matter
    base = AutoModelForCausalLM.from_pretrained(bases["tied"])
    bare = logits(base)
    reloaded = logits(PeftModel.from_pretrained(base, folder))
    assert torch.equal(reloaded, logits(trainer.model))
    assert difference(bare, reloaded) > 0.01
    assert AutoTokenizer.from_pretrained(folder).chat_template
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(bases["tied"]) and config["inference_mode"] is True


def test_an_adapter_names_its_base_and_is_small(run: Run) -> None:
    trainer = run(checkpoint=[{**EXPORT, "save_every_n_steps": 2}], peft={"type": "lora", "r": 1})
    folder = trainer.run_dir / "export"
    found = AutoPeftModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(found), logits(trainer.model))
    assert adapter_files(folder) == {"adapter_config.json", "adapter_model.safetensors", "step-2", "step-4"}
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        assert all(".lora_A.weight" in name or ".lora_B.weight" in name for name in file.keys())  # noqa: SIM118


def test_save_dtype_is_that_of_the_adapter(run: Run) -> None:
    folder = run(checkpoint=[{**EXPORT, "save_dtype": "bf16"}]).run_dir / "export"
    assert {value.dtype for value in load_file(folder / "adapter_model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize("base", ["tied", pytest.param("untied", marks=pytest.mark.thorough)])
@pytest.mark.parametrize(
    "more",
    [
        {},
        pytest.param({"use_dora": True}, marks=pytest.mark.thorough),
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"], "config": {"ensure_weight_tying": False}},
        pytest.param({"target_modules": ["q_proj", "lm_head"]}, marks=pytest.mark.thorough),
        pytest.param({"target_modules": ["q_proj", "embed_tokens"]}, marks=pytest.mark.thorough),
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"config": {"trainable_token_indices": [5, 6]}},
    ],
    ids=str,
)
def test_merged_weights_give_the_adapters_logits_and_leave_the_run_alone(
    run: Run, bases: dict[str, Path], base: str, more: dict[str, Any]
) -> None:
    """Also where head and embedding are one weight and the adapter has changed only one of them."""
    peft = {"type": "lora", "r": 4, **more}
    model = {"name_or_path": str(bases[base])}
    save = [{**EXPORT, "save_every_n_steps": 2}]
    plain, merging = Recorder(), Recorder()
    run(plain, model=model, peft=peft)
    trainer = run(merging, model=model, peft={**peft, "merge_on_export": True}, checkpoint=save)
    assert [line["loss"] for line in plain.metrics] == [line["loss"] for line in merging.metrics]
    folder = trainer.run_dir / "export"
    assert not (folder / "adapter_config.json").exists()
    merged = AutoModelForCausalLM.from_pretrained(folder)
    assert difference(logits(trainer.model), logits(merged)) < 1e-5
    stays_tied = not more or "use_dora" in more or (base == "untied" and "lm_head" not in str(more))
    if base == "tied" and stays_tied:
        assert merged.lm_head.weight is merged.model.embed_tokens.weight
    with trainer.model.disable_adapter():
        assert difference(logits(merged), logits(trainer.model)) > 0.01


def test_a_half_precision_base_is_merged_in_full_and_rounded_once(run: Run, bases: dict[str, Path]) -> None:
    """Its head was trained as a copy in float32, which must not stay behind, nor the casts around it."""
    trainer = run(
        checkpoint=[EXPORT],
        model={"name_or_path": str(bases["untied"]), "weights_dtype": "bf16"},
        peft={"type": "lora", "r": 4, "modules_to_save": ["lm_head"], "merge_on_export": True},
    )
    merged = AutoModelForCausalLM.from_pretrained(trainer.run_dir / "export", dtype="auto")
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    assert difference(logits(trainer.model), logits(merged)) < 0.06  # a few roundings of bf16
    head = trainer.model.get_base_model().lm_head.modules_to_save["default"].weight
    assert torch.equal(merged.lm_head.weight, head.bfloat16())
    layer = trainer.model.get_base_model().model.layers[1].mlp.up_proj
    exact = layer.base_layer.weight.float() + layer.get_delta_weight("default").float()
    assert torch.equal(merged.model.layers[1].mlp.up_proj.weight, exact.bfloat16())


def test_a_merged_export_in_the_place_of_an_adapter_leaves_nothing_of_it(run: Run) -> None:
    """A loader that finds an adapter_config.json next to complete weights adds the adapter a second time."""
    again = {**EXPORT, "overwrite": True}
    run(checkpoint=[again])
    trainer = run(checkpoint=[again], peft={"type": "lora", "r": 4, "merge_on_export": True})
    folder = trainer.run_dir / "export"
    assert "model.safetensors" in adapter_files(folder) and not list(folder.glob("adapter*"))
    trainer = run(checkpoint=[again])
    assert adapter_files(folder) == {"adapter_config.json", "adapter_model.safetensors"}


def test_an_unmergeable_method_is_refused(run: Run) -> None:
    with pytest.raises(CheckpointError, match=facts("peft.merge_on_export", "Beft", "merged", "LlamaForCausalLM")):
        run(checkpoint=[EXPORT], peft={"type": "beft", "merge_on_export": True})


# ------------------------------------------------------------------------------------------------- continuing


def test_a_run_continues_from_an_adapter(run: Run, tmp_path: Path) -> None:
    first = run(checkpoint=[EXPORT], peft={"type": "lora", "r": 3, "alpha": 5})
    recorder = Recorder()
    folder = first.run_dir / "export"
    second = run(recorder, peft={"adapter": str(folder)}, run_dir=str(tmp_path / "second"), optimizer={"lr": 0.0})
    assert torch.equal(logits(first.model), logits(second.model))
    assert second.model.active_peft_config.r == 3
    names = {name for name, p in first.model.named_parameters() if p.requires_grad}
    assert names == {name for name, p in second.model.named_parameters() if p.requires_grad}


def test_an_adapter_of_another_base_or_broken_is_refused(run: Run, tmp_path: Path) -> None:
    folder = run(checkpoint=[EXPORT], peft={"type": "lora", "target_modules": ["q_proj"]}).run_dir / "export"
    with pytest.raises(ModelError, match=facts("peft.type", "given 'ia3'", f"'{folder}'", " lora")):
        run(peft={"adapter": str(folder), "type": "ia3"})
    weights = load_file(folder / "adapter_model.safetensors")
    name, value = next(iter(weights.items()))
    for spoilt, expected in (
        ({**weights, name: value[:-1]}, ["loading state_dict"]),
        ({key: each for key, each in weights.items() if key != name}, [name.removesuffix(".weight")]),
        (
            {**weights, "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": value.clone()},
            ["layers.9.self_attn.q_proj.lora_A"],
        ),
        ({**weights, name: value * float("nan")}, ["not finite"]),
    ):
        save_file(spoilt, folder / "adapter_model.safetensors")
        with pytest.raises(ModelError, match=facts("peft.adapter", f"'{folder}'", *expected)):
            run(peft={"adapter": str(folder)}, run_dir=str(tmp_path / "second"))
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match=facts("peft.adapter", f"'{folder}'", "read", "PEFT")):
        run(peft={"adapter": str(folder)}, run_dir=str(tmp_path / "second"))


def test_an_adapter_is_no_model(run: Run, tmp_path: Path) -> None:
    folder = run(checkpoint=[EXPORT]).run_dir / "export"
    with pytest.raises(
        ModelError,
        match=facts("model.name_or_path", f"'{folder}'", "peft.adapter", f"hooktrain export {folder} --merge"),
    ):
        run(model={"name_or_path": str(folder)}, run_dir=str(tmp_path / "second"))


# ------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize(
    "more", [{"dropout": 0.2}, pytest.param({"modules_to_save": ["embed_tokens"]}, marks=pytest.mark.thorough)], ids=str
)
def test_a_resumed_run_equals_an_uninterrupted_one(run: Run, tmp_path: Path, more: dict[str, Any]) -> None:
    uninterrupted, resumed = Recorder(), Recorder()
    settings = {"peft": {"type": "lora", "r": 4, **more}, "checkpoint": [FULL]}
    one = run(uninterrupted, **settings)
    path = tmp_path / "run/checkpoints/step-00000002"
    other = run(resumed, **settings, trainer={"resume_from": path})
    assert [m["loss"] for m in uninterrupted.metrics[2:]] == [m["loss"] for m in resumed.metrics]
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name
    weights = torch.load(path / "model-0.pt", weights_only=True)
    assert all("lora_" in name or "modules_to_save" in name for name in weights), "the base is not in it"


def test_a_resume_on_another_base_is_refused(run: Run, bases: dict[str, Path], tmp_path: Path) -> None:
    run(checkpoint=[FULL])
    other = AutoModelForCausalLM.from_pretrained(bases["tied"])
    with torch.no_grad():
        other.model.norm.weight[0] += 1
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(bases["tied"]).save_pretrained(tmp_path / "other")
    with pytest.raises(
        CheckpointError, match=facts("step-00000002", "1 of them", "(base_model.model.model.norm.weight", "recipe.yaml")
    ):
        run(
            checkpoint=[FULL],
            model={"name_or_path": str(tmp_path / "other")},
            allow_changes=["model", "tokenizer"],
            trainer={"resume_from": tmp_path / "run/checkpoints/step-00000002"},
        )
    with pytest.raises(CheckpointError, match=facts("step-00000002", "shape", "recipe.yaml")):
        run(
            checkpoint=[FULL],
            peft={"type": "lora", "r": 5},
            allow_changes=["peft"],
            trainer={"resume_from": tmp_path / "run/checkpoints/step-00000002"},
        )


def test_a_killed_run_resumes(run: Run, recipe: dict[str, Any], tmp_path: Path) -> None:
    """Killed while it writes its second checkpoint, it resumes from the first."""
    save = [{**FULL, "save_every_n_steps": 1, "auto_resume": True}]
    assert killed({**recipe, "checkpoint": save}, 38, tmp_path / "process")
    checkpoints = tmp_path / "run/checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == [".saving-step-00000002", "step-00000001"]
    uninterrupted, again = Recorder(), Recorder()
    run(uninterrupted, run_dir=str(tmp_path / "whole"))
    run(again, checkpoint=save)
    assert [m["loss"] for m in again.metrics] == [m["loss"] for m in uninterrupted.metrics[1:]]
