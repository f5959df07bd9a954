"""Every key that a dialect's table has as translated: another value changes the resolved recipe where the account says."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hooktrain_recipes.plugin import DIALECTS

from hooktrain import RecipeError
from tests.plugins.recipes.changing import copied, put
from tests.plugins.recipes.translating import dialect, resolved

PAIRS: tuple[tuple[Any, Any], ...] = (
    (2, 3), (0.25, 0.5), (True, False), ("one", "two"), (["one"], ["two"]), ({"one": 1}, {"one": 2}),
)  # fmt: skip
"""Values that are tried for a key that has none of its own below."""
BASES: dict[str, dict[str, Any]] = {
    "arctic": {"model": {"name_or_path": "org/model"}, "data": {"sources": [{"name_or_path": "org/rows"}]}},
    "trl": {"model_name_or_path": "org/model", "dataset_name": "org/rows"},
    "axolotl": {
        "base_model": "org/model",
        "datasets": [{"path": "org/rows", "type": "alpaca"}],
        "learning_rate": 0.1,
        "micro_batch_size": 2,
    },
    "llamafactory": {
        "model_name_or_path": "org/model",
        "do_train": True,
        "stage": "sft",
        "dataset": "identity",
        "template": "llama3",
        "finetuning_type": "lora",
    },
}
"""A recipe of each, to which a key is added."""

V1 = {"": {"model": "org/model", "train_dataset": "sets.yaml"}}
V1_LORA = {"": {**V1[""], "peft_config": {"name": "lora"}}}
LORA = {"use_peft": True}
QLORA = {**LORA, "load_in_4bit": True}
AXOLOTL_LORA = {"adapter": "lora", "lora_target_linear": True}
OFT = {"finetuning_type": "oft"}
AXOLOTL_QLORA = {**AXOLOTL_LORA, "load_in_4bit": True}
TALKS = {"datasets": [{"path": "org/rows", "type": "chat_template"}]}
TEXTS = {"datasets": [{"path": "org/rows", "type": "completion"}]}
HELD = {"val_set_size": 0.1, "num_epochs": 1}
LIGER = {"plugins": ["axolotl.integrations.liger.LigerPlugin"]}
MIXTURE = {"dataset_name": None, "dataset_mixture": {"datasets": [{"id": "org/rows"}]}}
DPO = {"rl": "dpo", "datasets": [{"path": "org/rows", "type": "chat_template"}]}
KTO = {"rl": "kto", "datasets": [{"path": "org/rows", "type": "llama3.ultra"}]}
KTO_OF_LLAMA = {"stage": "kto", "dataset": "kto_en_demo"}
PAIRS_OF_LLAMA = {"stage": "dpo", "dataset": "dpo_en_demo"}
TRL_DPO = {"loss_type": "sigmoid"}
ARCTIC_DPO = {"type": "dpo"}
STAGES = ({"zero_optimization": {"stage": 2}}, {"zero_optimization": {"stage": 3}})
PRECISION = ({"enabled": True}, {"enabled": False})
EXACT = {"model": {"name_or_path": "org/model", "dtype": "fp32"}}
ADAM = {"type": "AdamW", "params": {"lr": 0.1}}
WARM = {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 5}}

OWN: dict[str, dict[str, tuple[Any, ...]]] = {
    "arctic": {
        "type": ("sft", "causal"),
        "wandb": ({"enable": True, "project": "a"}, {"enable": True, "project": "b"}),
        "beta": (0.1, 0.2, ARCTIC_DPO),
        "label_smoothing": (0.1, 0.2, ARCTIC_DPO),
        "ref_model.name_or_path": ("org/model", "org/other", ARCTIC_DPO),
        "deepspeed": STAGES,
        **{f"deepspeed.{each}": (*PRECISION, EXACT) for each in ("bf16", "bfloat16", "fp16")},
        "deepspeed.optimizer": (ADAM, {"type": "SGD", "params": {"lr": 0.1}}),
        "deepspeed.scheduler": (WARM, {"type": "WarmupCosineLR", "params": {"warmup_num_steps": 5}}),
        "model.type": ("liger", "huggingface"),
        "model.dtype": ("bf16", "fp16"),
        "data.type": ("sft", "causal", {"type": "sft", "skip_validation": True}),
        "data.sources[]": ("org/one", "org/two"),
        "data.sources[].split_mapping": ({"train": "a"}, {"train": "b"}),
        "data.sources[].role_mapping": ({"user": "a"}, {"user": "b"}),
        "data.sources[].column": ("a", "b", {"type": "causal"}),
        "data.sources[].kwargs": ({"name": "a"}, {"name": "b"}),
        "data.eval_sources[]": ("org/one", "org/two"),
        "data.train_eval_split": ([0.9, 0.1], [0.8, 0.2]),
        "optimizer.type": ("fused_adam", "cpu_adam"),
        "optimizer.betas": ([0.9, 0.9], [0.8, 0.8]),
        "scheduler.name": ("linear", "cosine"),
        "scheduler.scheduler_specific_kwargs": (
            {"min_lr_rate": 0.1},
            {"min_lr_rate": 0.2},
            {"scheduler": {"name": "cosine_with_min_lr"}},
        ),
        "checkpoint[].type": ("deepspeed", "huggingface"),
    },
    "axolotl": {
        "rl": ("dpo", "orpo", DPO),
        "rl_beta": (0.1, 0.2, DPO),
        "orpo_alpha": (0.1, 0.2, {**DPO, "rl": "orpo"}),
        "simpo_gamma": (0.1, 0.2, {**DPO, "rl": "simpo", "cpo_alpha": 0}),
        "dpo_loss_type": (["ipo"], ["hinge"], DPO),
        "dpo_label_smoothing": (0.1, 0.2, {**DPO, "dpo_loss_type": ["robust"]}),
        "rl_adapter_ref_model": (True, False, DPO),
        "dpo_loss_weights": ([0.5, 1.0], [0.7, 1.0], {**DPO, "dpo_loss_type": ["sigmoid", "ipo"]}),
        "kto_desirable_weight": (0.1, 0.2, KTO),
        "kto_undesirable_weight": (0.1, 0.2, KTO),
        "reward_model": (True, False, {"datasets": [{"path": "org/rows", "type": None}]}),
        "center_rewards_coefficient": (0.1, 0.2, {"reward_model": True, "datasets": [{"path": "org/rows"}]}),
        **{f"use_{name}": (True, False) for name in ("tensorboard", "wandb", "mlflow", "trackio", "swanlab")},
        **{
            key: ("a", "b", {"use_wandb": True}) for key in ("wandb_name", "wandb_entity", "wandb_mode", "wandb_run_id")
        },
        **{f"mlflow_{key}": ("a", "b", {"use_mlflow": True}) for key in ("tracking_uri", "run_name")},
        **{f"trackio_{key}": ("a", "b", {"use_trackio": True}) for key in ("run_name", "space_id")},
        **{
            f"swanlab_{key}": ("a", "b", {"use_swanlab": True})
            for key in ("project", "experiment_name", "description", "mode", "workspace")
        },
        "activation_offloading": (True, False, {"gradient_checkpointing": True}),
        "torch_compile_backend": ("aot_eager", "eager", {"torch_compile": True}),
        "torch_compile_mode": ("max-autotune", "default", {"torch_compile": True}),
        "special_tokens": ({"pad_token": "a"}, {"pad_token": "b"}),
        "added_tokens_overrides": ({5: "<a>"}, {5: "<b>"}),
        "default_system_message": ("a", "b", {**TALKS, "chat_template": "chatml"}),
        "eot_tokens": (["a"], ["b"], TALKS),
        "fp16": (True, False, {"bf16": False}),
        "float16": (True, False, {"bf16": False}),
        "plugins": (LIGER["plugins"], []),
        "liger_rope": (True, False, LIGER),
        "liger_glu_activation": (True, False, LIGER),
        "liger_fused_linear_cross_entropy": (True, False, LIGER),
        "adapter": ("lora", None, AXOLOTL_LORA),
        "lora_model_dir": ("a", "b", AXOLOTL_LORA),
        "lora_r": (2, 3, AXOLOTL_LORA),
        "lora_alpha": (2, 3, AXOLOTL_LORA),
        "lora_dropout": (0.1, 0.2, AXOLOTL_LORA),
        "lora_target_modules": (["a"], ["b"], {"adapter": "lora"}),
        "lora_target_linear": (True, False, {"adapter": "lora", "lora_target_modules": ["gate"]}),
        "lora_target_parameters": (["a"], ["b"], AXOLOTL_LORA),
        "lora_modules_to_save": (["a"], ["b"], AXOLOTL_LORA),
        "lora_rank_pattern": ({"a": 1}, {"a": 2}, AXOLOTL_LORA),
        "peft_use_dora": (True, False, AXOLOTL_LORA),
        "peft_use_rslora": (True, False, AXOLOTL_LORA),
        "peft.loftq_config.loftq_bits": (4, None, AXOLOTL_LORA),
        "peft_init_lora_weights": ("pissa", "gaussian", AXOLOTL_LORA),
        "datasets[].type": ("alpaca", "chat_template"),
        "datasets[].field": ("a", "b", TEXTS),
        "datasets[].field_messages": ("a", "b", TALKS),
        "datasets[].field_tools": ("a", "b", TALKS),
        "datasets[].message_property_mappings": ({"role": "from", "content": "value"}, {"role": "who"}, TALKS),
        "datasets[].roles": ({"assistant": ["narrator"]}, {"user": ["narrator"]}, TALKS),
        "datasets[].drop_system_message": (True, False, TALKS),
        "datasets[].chat_template": ("chatml", "llama3", TALKS),
        "datasets[].roles_to_train": (None, ["assistant"], TALKS),
        "test_datasets": ([{"path": "a", "type": "alpaca"}], [{"path": "b", "type": "alpaca"}]),
        "pretraining_dataset": ([{"path": "a"}], [{"path": "b"}], {"datasets": None}),
        "streaming": (True, False),
        "chat_template": ("chatml", "qwen3", TALKS),
        "chat_template_jinja": ("{{ a }}", "{{ b }}", TALKS),
        "excess_length_strategy": ("drop", "raise"),
        "batch_size": (4, 8),
        "optimizer": ("sgd", "adafactor"),
        "lr_scheduler": ("linear", "constant_with_warmup"),
        "lr_scheduler_kwargs": ({"min_lr_rate": 0.1}, {"min_lr_rate": 0.2}, {"lr_scheduler": "cosine_with_min_lr"}),
        "eval_steps": (2, 3, HELD),
        "evals_per_epoch": (1, 4, HELD),
        "early_stopping_patience": (2, 3, {**HELD, "eval_steps": 2}),
        "load_best_model_at_end": (True, False, HELD),
        "loss_watchdog_patience": (2, 3, {"loss_watchdog_threshold": 5.0}),
        "load_in_4bit": (True, False, AXOLOTL_LORA),
        "load_in_8bit": (True, False, AXOLOTL_LORA),
        "bnb_config_kwargs.bnb_4bit_quant_type": ("nf4", "fp4", AXOLOTL_QLORA),
        "bnb_config_kwargs.bnb_4bit_use_double_quant": (True, False, AXOLOTL_QLORA),
        "bnb_config_kwargs.bnb_4bit_compute_dtype": ("bfloat16", "float32", AXOLOTL_QLORA),
        "lr_groups[]": ({"modules": ["a"], "lr": 0.1}, {"modules": ["b"], "lr": 0.1}),
        "loraplus_lr_ratio": (2, 3, AXOLOTL_LORA),
        "unfrozen_parameters": (["a"], ["b"]),
        "saves_per_epoch": (1, 0, {"save_strategy": "no"}),
        "save_strategy": ("epoch", "no"),
        "fsdp_config": ({"sharding_strategy": "FULL_SHARD"}, {"sharding_strategy": "NO_SHARD"}),
        "dp_shard_size": (1, 2),
        "deepspeed": ("stage2.json", "stage3.json"),
    },
    "llamafactory": {
        "stage": ("sft", "pt"),
        "torch_compile_mode": ("max-autotune", "default"),
        "pref_beta": (0.1, 0.2, PAIRS_OF_LLAMA),
        "pref_loss": ("hinge", "ipo", PAIRS_OF_LLAMA),
        "dpo_label_smoothing": (0.1, 0.2, PAIRS_OF_LLAMA),
        "simpo_gamma": (0.1, 0.2, {**PAIRS_OF_LLAMA, "pref_loss": "simpo"}),
        "ref_model": ("a", "b", PAIRS_OF_LLAMA),
        "kto_chosen_weight": (0.1, 0.2, KTO_OF_LLAMA),
        "kto_rejected_weight": (0.1, 0.2, KTO_OF_LLAMA),
        "report_to": ("tensorboard", "wandb"),
        "use_swanlab": (True, False),
        "dataset": ("identity", "alpaca_en_demo"),
        "eval_dataset": ("identity", "alpaca_en_demo"),
        "dataset_dir": ("REMOTE:org/a", "REMOTE:org/b"),
        "template": ("chatml", "llama3"),
        "enable_thinking": (True, False, {"template": "qwen3"}),
        "streaming": (True, False),
        "interleave_probs": (
            "0.5,0.5",
            "0.6,0.4",
            {"dataset": "identity,alpaca_en_demo", "mix_strategy": "interleave_over"},
        ),
        "flash_attn": ("fa2", "sdpa"),
        "finetuning_type": ("lora", "full"),
        "oft_block_size": (2, 4, OFT),
        "oft_rank": (2, 4, OFT),
        "oft_target": ("a", "b", OFT),
        "module_dropout": (0.1, 0.2, OFT),
        "optim": ("sgd", "adafactor"),
        "lr_scheduler_type": ("linear", "cosine"),
        "lr_scheduler_kwargs": (
            {"min_lr_rate": 0.1},
            {"min_lr_rate": 0.2},
            {"lr_scheduler_type": "cosine_with_min_lr"},
        ),
        "eval_strategy": ("epoch", "no", {"val_size": 0.1}),
        "eval_steps": (2, 3, {"val_size": 0.1, "eval_strategy": "steps"}),
        "eval_delay": (2, 3, {"val_size": 0.1, "eval_strategy": "steps"}),
        "early_stopping_steps": (2, 3, {"val_size": 0.1, "eval_strategy": "steps"}),
        "load_best_model_at_end": (True, False, {"val_size": 0.1}),
        "quantization_bit": (4, 8),
        "quantization_type": ("nf4", "fp4", {"quantization_bit": 4}),
        "double_quantization": (True, False, {"quantization_bit": 4}),
        "use_muon": (True, False, {"finetuning_type": "full"}),
        "quant_config": ({"name": "bnb", "quantization_bit": 4}, {"name": "bnb", "quantization_bit": 8}, V1_LORA),
        "optim_config": ({"name": "muon", "wd": 0.1}, {"name": "muon", "wd": 0.2}, V1),
        "eval_on_start": (True, False, {"val_size": 0.1}),
        "save_strategy": ("epoch", "no"),
        "fsdp_config": ({"sharding_strategy": "FULL_SHARD"}, {"sharding_strategy": "NO_SHARD"}),
        "deepspeed": ("stage2.json", "stage3.json"),
        "model": ("a", "b", V1),
        "train_dataset": ("sets.yaml", "other.yaml", V1),
        "peft_config": ({"name": "lora", "r": 2}, {"name": "lora", "r": 3}, V1),
        "dist_config": ({"name": "fsdp2"}, None, V1),
        "kernel_config": ({"name": "liger_kernel"}, {"name": "auto"}, V1),
        "global_batch_size": (2, 4, V1),
        "save_epochs": (1, 2, V1),
        "batching_strategy": ("padding_free", "normal", V1),
        "custom_chat_template": ("{{ a }}", "{{ b }}", V1),
        "micro_batch_size": (2, 3, V1),
        "cp_size": (2, 4, V1),
        "dist_timeout": (2, 3, V1),
        "enable_activation_checkpointing": (True, False, V1),
    },
    "trl": {
        "torch_compile_mode": ("max-autotune", "default"),
        "dataset_test_split": ("a", "b", {"eval_strategy": "steps"}),
        "dataset_mixture.datasets[].id": ("a", "b", MIXTURE),
        "dataset_mixture.datasets[].config": ("a", "b", MIXTURE),
        "dataset_mixture.datasets[].split": ("a", "b", MIXTURE),
        "dataset_mixture.datasets[].weight": (0.25, 0.5, MIXTURE),
        "dataset_mixture.seed": (2, 3, MIXTURE),
        "dataset_mixture.test_split_size": (0.1, 0.2, MIXTURE),
        "dataset_mixer": ({"org/a": 1.0}, {"org/b": 1.0}, {"dataset_name": None}),
        "torch_dtype": ("bfloat16", "float32"),
        "lora_r": (2, 3, LORA),
        "lora_alpha": (2, 3, LORA),
        "lora_dropout": (0.1, 0.2, LORA),
        "lora_target_modules": (["a"], ["b"], LORA),
        "lora_modules_to_save": (["a"], ["b"], LORA),
        "lora_target_parameters": (["a"], ["b"], LORA),
        "use_rslora": (True, False, LORA),
        "use_dora": (True, False, LORA),
        "packing_strategy": ("wrapped", "bfd"),
        "optim": ("sgd", "adafactor"),
        "optim_args": ("weight_decay=0.1", "weight_decay=0.2", {"optim": "adafactor"}),
        "lr_scheduler_type": ("linear", "cosine"),
        "lr_scheduler_kwargs": (
            {"min_lr_rate": 0.1},
            {"min_lr_rate": 0.2},
            {"lr_scheduler_type": "cosine_with_min_lr"},
        ),
        "eval_strategy": ("steps", "no"),
        "eval_steps": (2, 3, {"eval_strategy": "steps"}),
        "eval_delay": (2, 3, {"eval_strategy": "steps"}),
        "load_best_model_at_end": (True, False, {"eval_strategy": "steps"}),
        "load_in_4bit": (True, False, LORA),
        "load_in_8bit": (True, False, LORA),
        "bnb_4bit_quant_type": ("nf4", "fp4", QLORA),
        "bnb_4bit_compute_dtype": ("bfloat16", "float32", QLORA),
        "use_bnb_nested_quant": (True, False, QLORA),
        "save_strategy": ("steps", "epoch"),
        "save_only_model": (True, False),
        "hub_model_id": ("a", "b", {"push_to_hub": True}),
        "hub_private_repo": (True, False, {"push_to_hub": True}),
        "report_to": ("tensorboard", "none"),
        "liger_kernel_config": ({"rope": True}, {"rope": False}, {"use_liger_kernel": True}),
        "accelerate_config": ("zero2", "zero3"),
        "loss_type": ("dft", "nll"),
        "beta": (0.1, 0.2, TRL_DPO),
        "label_smoothing": (0.1, 0.2, {"loss_type": "robust"}),
        "cpo_alpha": (0.1, 0.2),
        "loss_weights": ([0.5, 1.0], [0.7, 1.0], {"loss_type": ["sigmoid", "ipo"]}),
        "discopop_tau": (0.1, 0.2, {"loss_type": "discopop"}),
        "desirable_weight": (0.1, 0.2),
        "undesirable_weight": (0.1, 0.2),
        "simpo_gamma": (0.1, 0.2, {"loss_type": "simpo", "cpo_alpha": 0.0}),
        "force_use_ref_model": (True, False, TRL_DPO),
        "ref_model_init_kwargs": ({"dtype": "bfloat16"}, {"dtype": "float32"}, TRL_DPO),
        "disable_dropout": (True, False, {**TRL_DPO, **LORA}),
        "deepspeed": ("stage2.json", "stage3.json"),
    },
}
"""Of a key its two values, and what else the recipe has, or under an empty name all that it has."""


def rows(name: str) -> list[Any]:
    table = importlib.import_module(f"hooktrain_recipes.{name}").ROWS
    return [row for row in table if row.kind == "translated" and row.ours]


def at(value: Any, path: str) -> Any:
    """The value at a path of a resolved recipe; None where there is none."""
    path = path.replace("trackers[", "trackers.use[")  # for which a list stands
    for step in path.replace("[", ".").replace("]", "").split("."):
        if isinstance(value, list):
            value = value[int(step)] if int(step) < len(value) else None
        else:
            value = value.get(step) if isinstance(value, dict) else None
    return value


def tries(name: str, key: str) -> Iterator[tuple[Any, Any, dict[str, Any]]]:
    if key in OWN[name]:
        first, second, *more = OWN[name][key]
        yield first, second, more[0] if more else {}
    else:
        for first, second in PAIRS:
            yield first, second, {}


def unchanged(name: str, key: str, folder: Path) -> str:
    """Why no other value of a key changes what the account says; empty where one does."""
    why = "no value is translated"
    for first, second, more in tries(name, key):
        made = []
        for value in (first, second):
            raw = copied(more.get("", {**BASES[name], **more}))
            put(raw, key, value)
            made.append(dialect(name).translate(raw, folder))
        if any(each.unsupported for each in made):
            continue
        place = key.replace("[]", "[0]")
        entries = [
            [entry for entry in each.translated if f"{entry.key}[0]" == place or entry.key.startswith(place)]
            for each in made
        ]
        targets = {to for each in entries for entry in each for to in entry.to}
        if not targets:
            continue
        try:
            one, two = map(resolved, made)
        except RecipeError as problem:
            why = str(problem)
            continue
        if changed := [to for to in targets if at(one, to) != at(two, to)]:
            same = targets.difference(changed)
            return (
                "" if not same or all(at(one, to) is None or at(one, to) == at(two, to) for to in same) else str(same)
            )
        why = f"{sorted(targets)} have the same values"
    return why


@pytest.mark.parametrize("name", DIALECTS)
def test_another_value_changes_what_the_account_says(name: str, tmp_path: Path) -> None:
    (tmp_path / "sets.yaml").write_text(json.dumps({"rows": {"path": "org/rows"}}))
    (tmp_path / "other.yaml").write_text(json.dumps({"rows": {"path": "org/others"}}))
    for stage in (2, 3):
        (tmp_path / f"stage{stage}.json").write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    found = {row.key: unchanged(name, row.key, tmp_path) for row in rows(name)}
    assert {key: why for key, why in found.items() if why} == {}
