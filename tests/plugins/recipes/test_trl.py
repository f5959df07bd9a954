"""Flat arguments of TRL's scripts: what they become, with the values written by hand."""

from __future__ import annotations

import json

import pytest

from hooktrain.recipe.dialects import values_of
from tests.plugins.recipes.translating import dialect, refusals, resolved, translated

SMALL = {"model_name_or_path": "org/model", "dataset_name": "org/rows"}
MIXTURE = """
model_name_or_path: org/model
model_revision: main
torch_dtype: bfloat16
attn_implementation: flash_attention_2
chat_template: "{% for message in messages %}{{ message.content }}\\n{% endfor %}"
dataset_mixture:
  datasets:
    - {id: org/one, config: default, split: train_sft, columns: [messages], weight: 1.0}
    - {id: org/two, config: extra, split: test_sft, columns: [messages], weight: 0.5}
  test_split_size: 1000
  seed: 0
dataset_num_proc: 12
bf16: true
do_eval: true
eval_strategy: epoch
gradient_accumulation_steps: 4
gradient_checkpointing: true
gradient_checkpointing_kwargs: {use_reentrant: false}
hub_model_id: org/new
push_to_hub: true
learning_rate: 2.0e-04
log_level: info
logging_steps: 5
lr_scheduler_type: cosine
max_seq_length: 2048
max_steps: -1
num_train_epochs: 1
output_dir: data/out
per_device_eval_batch_size: 2
per_device_train_batch_size: 8
report_to: [tensorboard]
save_strategy: steps
save_steps: 100
save_total_limit: 1
warmup_ratio: 0.1
"""


def test_a_mixture_of_the_handbook():
    recipe = resolved(translated("trl", MIXTURE))
    model = recipe["model"]
    assert (model["name_or_path"], model["dtype"], model["weights_dtype"]) == ("org/model", "bf16", "bf16")
    assert (model["attn_implementation"], model["activation_checkpointing"]) == ("flash_attention_2", True)
    assert recipe["tokenizer"]["chat_template"].startswith("{% for message")
    data = recipe["data"]
    one, two = data["sources"]
    assert (one["name_or_path"], one["subset"], one["split"], one["sample_ratio"]) == (
        "org/one",
        None,
        "train_sft",
        None,
    )
    assert (two["subset"], two["split"], two["sample_ratio"], two["sample_seed"]) == ("extra", "test_sft", 0.5, 0)
    assert (data["val_size"], data["seed"], data["num_proc"], data["max_length"]) == (1000, 0, 12, 2048)
    assert (data["train_on"], data["overflow"], data["pack_samples"]) == ("all", "truncate", False)
    assert (recipe["micro_batch_size"], recipe["gradient_accumulation_steps"], recipe["eval_micro_batch_size"]) == (
        8,
        4,
        2,
    )
    assert (recipe["epochs"], recipe["train_iters"], recipe["log_interval"], recipe["eval_interval"]) == (
        1,
        None,
        5,
        "epoch",
    )
    assert (recipe["optimizer"]["type"], recipe["optimizer"]["lr"], recipe["optimizer"]["weight_decay"]) == (
        "adamw",
        2e-4,
        0.0,
    )
    assert (recipe["scheduler"]["type"], recipe["scheduler"]["warmup_ratio"]) == ("cosine", 0.1)
    export, full = recipe["checkpoint"]
    assert (export["type"], export["output_dir"], export["push_to"]) == ("huggingface", "data/out", "org/new")
    assert (full["type"], full["save_every_n_steps"], full["keep_last"]) == ("full", 100, 1)
    assert recipe["trackers"]["use"] == [{"type": "tensorboard"}]


def test_the_least_recipe_has_the_other_program_s_defaults():
    recipe = resolved(translated("trl", SMALL))
    assert (recipe["micro_batch_size"], recipe["epochs"], recipe["log_interval"]) == (8, 3, 10)
    assert (recipe["optimizer"]["lr"], recipe["optimizer"]["weight_decay"], recipe["scheduler"]["type"]) == (
        2e-5,
        0.0,
        "linear",
    )
    assert (recipe["data"]["max_length"], recipe["data"]["train_on"]) == (1024, "all")
    assert recipe["checkpoint"][1]["save_every_n_steps"] == 500
    assert recipe["data"]["eval_sources"] == []


def test_one_data_set_with_its_test_split():
    more = {
        "dataset_config": "all",
        "dataset_train_split": "a",
        "eval_strategy": "steps",
        "eval_steps": 50,
        "packing": True,
    }
    recipe = resolved(translated("trl", {**SMALL, **more, "assistant_only_loss": True, "max_steps": 20}))
    (source,), (held,) = recipe["data"]["sources"], recipe["data"]["eval_sources"]
    assert (source["subset"], source["split"]) == ("all", "a")
    assert (held["name_or_path"], held["subset"], held["split"]) == ("org/rows", "all", "test")
    assert (recipe["eval_interval"], recipe["train_iters"], recipe["epochs"]) == (50, 20, None)
    assert (recipe["data"]["train_on"], recipe["data"]["pack_samples"]) == ("assistant", True)


def test_the_old_mixer():
    mixer = {"dataset_mixer": {"org/a_1.2": 1.0, "org/b": 0.1}, "dataset_splits": ["train", "test"], "do_eval": True}
    recipe = resolved(translated("trl", {"model_name_or_path": "org/model", **mixer}))
    assert [(source["name_or_path"], source["sample_ratio"]) for source in recipe["data"]["sources"]] == [
        ("org/a_1.2", None),
        ("org/b", 0.1),
    ]
    assert [source["split"] for source in recipe["data"]["eval_sources"]] == ["test", "test"]


def test_an_adapter_and_what_trl_has_where_it_is_silent():
    peft = resolved(translated("trl", {**SMALL, "use_peft": True, "lora_r": 8, "lora_target_modules": "all-linear"}))[
        "peft"
    ]
    assert (peft["type"], peft["r"], peft["alpha"], peft["dropout"]) == ("lora", 8, 32.0, 0.05)
    assert peft["target_modules"] == "all-linear"
    silent = resolved(translated("trl", {**SMALL, "use_peft": True}))["peft"]
    assert silent["config"] == {"target_modules": None}, "PEFT chooses by the model"
    assert resolved(translated("trl", {**SMALL, "lora_r": 8}))["peft"]["type"] is None


def test_deepspeed_s_file_is_read(tmp_path):
    (tmp_path / "ds.json").write_text(
        json.dumps(
            {
                "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}},
                "bf16": {"enabled": "auto"},
                "train_batch_size": "auto",
                "gradient_clipping": "auto",
                "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": [0.9, 0.95]}},
            }
        )
    )
    recipe = resolved(translated("trl", {**SMALL, "deepspeed": "ds.json", "max_grad_norm": 0.5}, tmp_path))
    strategy = recipe["strategy"]
    assert (strategy["type"], strategy["config"]["zero_optimization"]["stage"]) == ("deepspeed", 3)
    assert (recipe["gradient_clipping"], recipe["optimizer"]["betas"]) == (0.5, [0.9, 0.95])
    assert "not there" in refusals(translated("trl", {**SMALL, "deepspeed": "no.json"}, tmp_path))["deepspeed"]
    (tmp_path / "bad.json").write_text("{")
    assert "cannot be read" in refusals(translated("trl", {**SMALL, "deepspeed": "bad.json"}, tmp_path))["deepspeed"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("zero3", {"type": "deepspeed", "zero_stage": 3}),
        ("fsdp2", {"type": "torch", "data_parallel": "fsdp2"}),
        ("multi_gpu", {"type": "torch", "data_parallel": "ddp"}),
        ("mine.yaml", {"type": "torch", "data_parallel": "fsdp2"}),
    ],
)
def test_accelerate_s_configurations(tmp_path, given, expected):
    (tmp_path / "mine.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nmixed_precision: bf16\nnum_processes: 8\n"
        "fsdp_config: {fsdp_activation_checkpointing: true, fsdp_offload_params: false, fsdp_version: 1}\n"
    )
    strategy = resolved(translated("trl", {**SMALL, "accelerate_config": given}, tmp_path))["strategy"]
    assert {key: strategy[key] for key in expected} == expected


PEFT = {"use_peft": True, "lora_target_modules": "all-linear"}
STEPS = {"eval_strategy": "steps", "eval_steps": 5}


@pytest.mark.parametrize(
    ("more", "to", "value"),
    [
        ({"eval_strategy": "epoch"}, "eval_interval", "epoch"),
        ({"eval_strategy": "steps", "eval_steps": 0.1}, "eval_interval", 0.3),
        ({**STEPS, "eval_delay": 9}, "eval_delay", 9),
        ({**STEPS, "load_best_model_at_end": True}, "checkpoint[0].save_best", "eval/eval/loss"),
        ({**STEPS, "load_best_model_at_end": True}, "data.eval_sources[0].name", "eval"),
        ({**STEPS, "save_strategy": "best"}, "checkpoint[0].save_best", "eval/eval/loss"),
        ({"save_steps": 0.05}, "checkpoint[1].save_every_n_epochs", 0.15),
        ({"save_steps": 0.05, "max_steps": 30}, "checkpoint[1].save_every_n_steps", 2),
        ({"num_train_epochs": 0.5}, "epochs", 0.5),
        ({**PEFT, "load_in_4bit": True}, "model.quantization", {"type": "nf4", "double": False}),
        ({**PEFT, "load_in_4bit": True, "use_bnb_nested_quant": True}, "model.quantization.double", True),
        ({**PEFT, "load_in_8bit": True}, "model.quantization", "int8"),
        ({"optim": "paged_adamw_8bit"}, "optimizer.type", "paged_adamw_8bit"),
        ({"torch_compile": True}, "model.compile", True),
        ({"torch_compile_backend": "aot_eager"}, "model.compile.backend", "aot_eager"),
        (
            {"torch_compile": True, "torch_compile_mode": "max-autotune"},
            "model.compile.mode",
            "max-autotune-no-cudagraphs",
        ),
        ({"activation_offloading": True}, "model.activation_offload", True),
        ({"overwrite_output_dir": True}, "checkpoint[0].overwrite", True),
        ({"overwrite_output_dir": True}, "checkpoint[1].overwrite", True),
        ({}, "type", "sft"),
        ({"lr_scheduler_type": "inverse_sqrt"}, "scheduler.type", "inverse_sqrt"),
        ({"lr_scheduler_type": "inverse_sqrt", "lr_scheduler_kwargs": {"timescale": 9}}, "scheduler.timescale", 9),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "scheduler.decay_shape", "cosine"),
        (
            {**STEPS, "lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"min_lr": 1e-6}},
            "scheduler.min_lr_ratio",
            0.05,
        ),
    ],
)
def test_what_hooktrain_has_is_translated(more, to, value):
    made = translated("trl", {**SMALL, **more})
    resolved(made)
    assert values_of(made.recipe)[to] == pytest.approx(value)


@pytest.mark.parametrize(
    ("more", "refused"),
    [
        ({"num_generations": 8, "reward_funcs": ["x"]}, {"num_generations": "rollouts", "reward_funcs": "rollouts"}),
        ({"teacher_model_name_or_path": "x"}, {"teacher_model_name_or_path": "distillation"}),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, {"load_in_4bit": "quantized base: without an adapter"}),
        ({"optim": "adamw_8bit", "fsdp": "full_shard"}, {"optim": "small states: while ranks share"}),
        (
            {"torch_compile": True, "deepspeed": {"zero_optimization": {"stage": 3}}},
            {"torch_compile": "compile: with ZeRO 3"},
        ),
        ({"torch_compile_mode": "fast"}, {"torch_compile_mode": "max-autotune"}),
        (
            {"activation_offloading": True, "gradient_checkpointing": False},
            {"activation_offloading": "without activation checkpointing"},
        ),
        ({"report_to": ["clearml", "tensorboard"]}, {"report_to": "trackers: clearml"}),
        ({"eval_strategy": "steps", "eval_steps": 0.9}, {"eval_steps": "every 2.7 epochs"}),
        ({"eval_strategy": "epoch", "eval_delay": 2}, {"eval_delay": "after some epochs"}),
        ({"lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"a": 1}}, {"lr_scheduler_kwargs.a": "schedules"}),
        ({"bf16": True, "fp16": True}, {"fp16": "contradicts"}),
        ({"max_length": 5, "max_seq_length": 6}, {"max_seq_length": "contradicts"}),
        (
            {"dataset_mixer": {"a": 1.0}, "dataset_mixture": {"datasets": [{"id": "x"}]}},
            {"dataset_mixer": "contradicts"},
        ),
        ({"learning_rat": 1.0}, {"learning_rat": "did you mean 'learning_rate'"}),
        ({"learning_rate": "fast"}, {"learning_rate": "expected a number"}),
        ({"callbacks": ["mine"]}, {"callbacks": "code of its own"}),
    ],
    ids=lambda value: "-".join(value),
)
def test_what_is_not_supported_says_why(more, refused):
    found = refusals(translated("trl", {**SMALL, **more}))
    assert found.keys() == refused.keys()
    for key, words in refused.items():
        assert words in found[key], found[key]


def test_a_launcher_s_configuration_is_no_recipe():
    assert (
        "accelerate"
        in translated("trl", {"compute_environment": "LOCAL_MACHINE", "distributed_type": "NO"}).not_a_recipe
    )
    assert translated("trl", {}).not_a_recipe


@pytest.mark.parametrize(
    ("raw", "known"),
    [
        (SMALL, True),
        ({"model_name_or_path": "x", "dataset": "y", "stage": "sft"}, False),
        ({"type": "sft", "model": {"name_or_path": "x"}}, False),
        ({"base_model": "x", "datasets": [{"path": "y"}]}, False),
    ],
)
def test_recognises(raw, known):
    assert dialect("trl").recognises(raw) is known
