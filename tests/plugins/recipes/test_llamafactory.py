"""Recipes of LLaMA-Factory: what they become, with the values written by hand."""

from __future__ import annotations

import json

import pytest

from hooktrain.recipe.dialects import values_of
from tests.plugins.recipes.translating import dialect, refusals, resolved, translated

BASE = """
model_name_or_path: org/model
stage: sft
do_train: true
finetuning_type: full
dataset: identity
template: llama3
output_dir: saves/one
"""


def of(more="", base=BASE, **folder):
    keys = {line.partition(":")[0] for line in more.splitlines()}
    kept = "".join(f"{line}\n" for line in base.splitlines() if line.partition(":")[0] not in keys or not line)
    return translated("llamafactory", kept + more, **folder)


def recipe(more="", base=BASE, **folder):
    return resolved(of(more, base, **folder))


def test_a_recipe_for_a_whole_model():
    made = recipe(
        """
cutoff_len: 1024
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
dataloader_num_workers: 4
logging_steps: 10
save_steps: 50
save_total_limit: 2
plot_loss: true
overwrite_output_dir: true
report_to: none
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-5
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
weight_decay: 0.01
bf16: true
ddp_timeout: 180000000
val_size: 0.1
eval_strategy: steps
eval_steps: 20
per_device_eval_batch_size: 2
flash_attn: fa2
resume_from_checkpoint: null
"""
    )
    assert (made["type"], made["micro_batch_size"], made["gradient_accumulation_steps"]) == ("sft", 1, 8)
    assert (made["epochs"], made["eval_interval"], made["eval_micro_batch_size"]) == (3, 20, 2)
    model = made["model"]
    assert (model["dtype"], model["weights_dtype"], model["activation_checkpointing"]) == ("bf16", "fp32", True)
    assert model["attn_implementation"] == "flash_attention_2"
    data = made["data"]
    assert (data["max_length"], data["overflow"], data["num_proc"], data["workers"]) == (1024, "truncate", 16, 4)
    (source,) = data["sources"]
    assert (source["name_or_path"], source["split"], source["format"]) == (
        "data/identity.json",
        "train[:1000]",
        "alpaca",
    )
    assert list(data["train_eval_split"]) == [0.9, 0.1]
    optimizer, scheduler = made["optimizer"], made["scheduler"]
    assert (optimizer["type"], optimizer["lr"], optimizer["weight_decay"]) == ("adamw", 1e-5, 0.01)
    assert (scheduler["type"], scheduler["warmup_ratio"]) == ("cosine", 0.1)
    full, export = made["checkpoint"]
    assert (full["type"], full["save_every_n_steps"], full["keep_last"]) == ("full", 50, 2)
    assert (export["type"], str(export["output_dir"])) == ("huggingface", "saves/one/model")
    assert made["strategy"]["timeout"] == 180000000
    assert made["tokenizer"]["special_tokens"] == {"eos_token": "<|eot_id|>"}
    assert "peft" not in made or made["peft"]["type"] is None


def test_defaults_that_are_not_ours_are_written():
    made = of("finetuning_type: lora\n")
    given = resolved(made)
    assert (given["epochs"], given["micro_batch_size"], given["scheduler"]["type"]) == (3, 8, "linear")
    assert (given["optimizer"]["lr"], given["optimizer"]["weight_decay"]) == (5e-5, 0.0)
    assert (given["peft"]["r"], given["peft"]["alpha"], given["peft"]["target_modules"]) == (8, 16, "all-linear")
    assert (given["model"]["dtype"], given["checkpoint"][0]["save_every_n_steps"]) == ("fp32", 500)
    assert {"optimizer.lr", "epochs", "peft.alpha"} <= set(made.notes)


def test_an_adapter_on_a_base_in_bf16():
    made = recipe(
        "finetuning_type: lora\nlora_rank: 4\nlora_target: q_proj,v_proj\nadditional_target: lm_head\nbf16: true\n"
        "use_rslora: true\npissa_init: true\n"
    )
    peft = made["peft"]
    assert (peft["type"], peft["r"], peft["alpha"], list(peft["target_modules"])) == (
        "lora",
        4,
        8,
        ["q_proj", "v_proj"],
    )
    assert (list(peft["modules_to_save"]), peft["use_rslora"], peft["init_lora_weights"]) == (
        ["lm_head"],
        True,
        "pissa",
    )
    assert made["model"]["weights_dtype"] == "bf16"


def test_dataset_info_is_read(tmp_path):
    (tmp_path / "data").mkdir()
    info = {
        "asked": {"file_name": "a.json", "columns": {"prompt": "question", "response": "answer", "system": "told"}},
        "talks": {"hf_hub_url": "org/talks", "formatting": "sharegpt", "split": "part", "num_samples": 7},
        "odd": {
            "file_name": "o.json",
            "formatting": "sharegpt",
            "columns": {"messages": "turns"},
            "tags": {"role_tag": "who", "content_tag": "said", "user_tag": "U", "assistant_tag": "A"},
        },
    }
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info))
    (tmp_path / "examples").mkdir()
    made = recipe("dataset: asked, talks, odd\neval_dataset: asked\nmax_samples: 5\n", folder=tmp_path / "examples")
    asked, talks, odd = made["data"]["sources"]
    assert asked["columns"] == {"instruction": "question", "output": "answer", "system": "told"}
    assert (asked["name_or_path"], asked["split"]) == ("data/a.json", "train[:5]")
    assert (talks["name_or_path"], talks["split"], talks["sample_count"]) == ("org/talks", "part", 5)
    assert talks["format"] == "sharegpt"
    assert odd["role_mapping"]["user"] == "turns.who.U" and odd["content_key"] == "said"
    (held,) = made["data"]["eval_sources"]
    assert held["name_or_path"] == "data/a.json"


def test_text():
    made = recipe("stage: pt\ndataset: c4_demo\n")
    assert (made["type"], made["data"]["text_column"], made["data"]["pack_samples"]) == ("causal", "text", True)


def test_masks_packing_and_the_loss():
    made = recipe(
        "mask_history: true\nneat_packing: true\nuse_dft_loss: true\ndisable_shuffling: true\npure_bf16: true\n"
    )
    data = made["data"]
    assert (data["train_on"], data["pack_samples"], data["shuffle"]) == ("last_assistant", True, False)
    assert (data["overflow"], made["loss"]["type"], made["model"]["weights_dtype"]) == ("drop", "dft", "bf16")


def test_deepspeed_is_read(tmp_path):
    (tmp_path / "z3.json").write_text('{"train_batch_size": "auto", "zero_optimization": {"stage": 3}}')
    made = recipe("deepspeed: z3.json\nbf16: true\n", folder=tmp_path)["strategy"]
    assert (made["type"], made["config"]) == ("deepspeed", {"zero_optimization": {"stage": 3}})


def test_the_second_generation(tmp_path):
    (tmp_path / "sets.yaml").write_text("one: {path: a.json, source: local, converter: alpaca, size: 5}\n")
    made = resolved(
        translated(
            "llamafactory",
            """
            model: org/model
            model_class: llm
            peft_config: {name: lora, r: 16, lora_alpha: 32, lora_dropout: 0.05, target_modules: all}
            kernel_config: {name: liger_kernel}
            dist_config: {name: fsdp2, dcp_path: null}
            train_dataset: sets.yaml
            output_dir: out
            micro_batch_size: 1
            cutoff_len: 2048
            learning_rate: 1.0e-4
            max_steps: 10
            sample_backend: hf
            """,
            tmp_path,
        )
    )
    assert (made["model"]["type"], made["strategy"]["data_parallel"]) == ("liger", "fsdp2")
    assert (made["peft"]["r"], made["peft"]["alpha"], made["peft"]["target_modules"]) == (16, 32, "all-linear")
    assert (made["train_iters"], made["scheduler"]["type"], made["optimizer"]["decay_vectors"]) == (
        10,
        "constant",
        True,
    )
    (source,) = made["data"]["sources"]
    assert (source["name_or_path"], source["sample_count"], source["format"]) == ("a.json", 5, "alpaca_joined")


HELD = "val_size: 0.1\nnum_train_epochs: 2\n"
V1 = {"model": "org/model", "train_dataset": "data/v1_sft_demo.yaml"}
TRANSLATED = [
    (HELD + "eval_strategy: epoch", "eval_interval", "epoch"),
    (HELD + "eval_strategy: steps\neval_steps: 0.1\neval_delay: 20", "eval_interval", 0.2),
    (HELD + "eval_strategy: steps\neval_steps: 10\neval_delay: 20", "eval_delay", 20),
    (HELD + "eval_strategy: steps\neval_steps: 5\nearly_stopping_steps: 5", "early_stopping.patience", 5),
    (
        "eval_dataset: identity\neval_strategy: epoch\nload_best_model_at_end: true",
        "checkpoint[1].save_best",
        "eval/eval/loss",
    ),
    ("save_steps: 0.5\nmax_steps: 9", "checkpoint[0].save_every_n_steps", 5),
    (
        "finetuning_type: lora\nquantization_bit: 4\ndouble_quantization: false",
        "model.quantization",
        {"type": "nf4", "double": False},
    ),
    ("finetuning_type: lora\nquantization_bit: 8", "model.quantization", "int8"),
    ("finetuning_type: lora\nmodel_name_or_path: org/model-AWQ", "model.name_or_path", "org/model-AWQ"),
    ("optim: paged_adamw_8bit", "optimizer.type", "paged_adamw_8bit"),
    ("torch_compile: true", "model.compile", True),
    ("output_dir: a\noverwrite_output_dir: true", "checkpoint[1].overwrite", True),
    ("torch_compile_mode: max-autotune", "model.compile.mode", "max-autotune-no-cudagraphs"),
    ("use_unsloth_gc: true", "model.activation_offload", True),
    ("finetuning_type: full\nuse_muon: true", "optimizer.adjust_lr", "match_rms_adamw"),
    ("finetuning_type: full\nuse_muon: true\nadam_epsilon: 1e-6", "optimizer.groups[0].eps", 1e-6),
    ("finetuning_type: lora\nloraplus_lr_ratio: 16\nlearning_rate: 1e-4", "optimizer.groups[0].lr", 1.6e-3),
    ("lr_scheduler_type: polynomial\nlearning_rate: 1e-4", "scheduler.min_lr_ratio", 1e-3),
]


@pytest.mark.parametrize(("keys", "to", "value"), TRANSLATED)
def test_what_hooktrain_has_is_translated(keys, to, value):
    made = of(keys)
    resolved(made)
    assert values_of(made.recipe).get(to) == pytest.approx(value)


def test_the_second_generation_has_muon_and_quantized_bases():
    muon = {"name": "muon", "wd": 0.2, "momentum": 0.9, "nesterov": True, "ns_steps": 5, "adamw_betas": [0.9, 0.95]}
    made = resolved(translated("llamafactory", {**V1, "optim_config": muon, "save_epochs": 0.5}))
    optimizer = made["optimizer"]
    assert (optimizer["type"], optimizer["weight_decay"], optimizer["momentum"]) == ("muon", 0.2, 0.9)
    (group,) = optimizer["groups"]
    assert (group["type"], group["lr"], list(group["betas"])) == ("adamw", 1e-4, [0.9, 0.95])
    assert made["checkpoint"][0]["save_every_n_epochs"] == 0.5
    quantized = {"quant_config": {"name": "bnb", "quantization_bit": 4}, "peft_config": {"name": "lora"}}
    made = resolved(translated("llamafactory", {**V1, **quantized, "global_batch_size": 8}))
    assert made["model"]["quantization"] == {"type": "nf4", "double": False} and made["global_batch_size"] == 8


def test_a_set_that_is_nowhere_is_expected_as_a_file():
    made = of("dataset: medicine")
    (source,) = resolved(made)["data"]["sources"]
    assert (source["name_or_path"], source["format"]) == ("data/medicine.json", "alpaca")
    assert "no set 'medicine' in dataset_info.json" in made.notes["data.sources[0].name_or_path"]


REFUSED = [
    ("stage: ppo", "stage", "rollouts"),
    ("finetuning_type: full\nquantization_bit: 4", "quantization_bit", "quantized base: without an adapter"),
    ("quantization_bit: 3\nquantization_method: hqq", "quantization_bit", "quantized base: 3 bits by hqq"),
    (
        "model_name_or_path: org/model-NVFP4",
        "model_name_or_path",
        "quantized base: of a format that PEFT has no adapters for",
    ),
    ("dataset: mllm_demo", "dataset", "images or audio"),
    ("finetuning_type: freeze", "finetuning_type", "groups"),
    ("use_galore: true", "use_galore", "optimizer with small states"),
    (
        "fsdp: full_shard\noptim: adamw_8bit",
        "optim",
        "optimizer with small states: while ranks share weights or states",
    ),
    ("use_llama_pro: true", "use_llama_pro", "training method: LLaMA-Pro"),
    ("mixture_of_depths: convert", "mixture_of_depths", "training method: mixture of depths"),
    ("use_asft_loss: true", "use_asft_loss", "training method: ASFT"),
    (
        "use_unsloth_gc: true\ndisable_gradient_checkpointing: true",
        "use_unsloth_gc",
        "activation offload or tiled MLP: without activation checkpointing",
    ),
    ("pipeline_model_parallel_size: 2", "pipeline_model_parallel_size", "expert, tensor or pipeline parallel"),
    ("fp8: true", "fp8", "FP8 training"),
    ("report_to: clearml", "report_to", "trackers: clearml"),
    (
        "val_size: 0.1\neval_strategy: epoch\neval_delay: 2",
        "eval_delay",
        "evaluations by several epochs: a first evaluation after some epochs",
    ),
]


@pytest.mark.parametrize(("keys", "key", "reason"), REFUSED)
def test_what_is_refused_says_why(keys, key, reason):
    assert refusals(of(keys))[key] == reason


LIES = [
    ("bf16: true\nfp16: true", "fp16", "contradicts another key: bf16"),
    ("eval_dataset: identity\nval_size: 0.1", "val_size", "contradicts another key: eval_dataset"),
    ("train_on_prompt: true\nmask_history: true", "mask_history", "contradicts another key: train_on_prompt"),
    ("dataset: identitty", "dataset", "no set 'identitty' in dataset_info.json (did you mean 'identity'?)"),
    ("cutof_len: 5", "cutof_len", "unknown key of LLaMA-Factory (did you mean 'cutoff_len'?)"),
]


@pytest.mark.parametrize(("keys", "key", "reason"), LIES)
def test_recipes_that_lie(keys, key, reason):
    assert refusals(of(keys))[key] == reason


@pytest.mark.parametrize(
    "text",
    [
        "{compute_environment: LOCAL_MACHINE, distributed_type: FSDP}",
        "{model_name_or_path: org/model, template: llama3, infer_backend: huggingface}",
        "{model_name_or_path: org/model, export_dir: out, template: llama3}",
        "{model_name_or_path: org/model, stage: sft, do_predict: true, dataset: identity}",
        "{model: org/model, peft_config: {name: lora, export_dir: out}}",
    ],
)
def test_files_that_are_no_recipes(text):
    assert translated("llamafactory", text).not_a_recipe


def test_only_its_own_recipes_are_recognised():
    factory = dialect("llamafactory")
    assert factory.recognises({"model_name_or_path": "m", "stage": "sft", "dataset": "d"})
    assert factory.recognises({"model": "m", "train_dataset": "d.yaml"})
    assert not factory.recognises({"model_name_or_path": "m", "dataset_name": "d"})
