"""Recipes of Axolotl: what they become, with the values written by hand."""

from __future__ import annotations

import pytest

from hooktrain.recipe.dialects import values_of
from tests.plugins.recipes.translating import dialect, refusals, resolved, translated

BASE = """
base_model: org/model
datasets: [{path: org/rows, type: alpaca}]
micro_batch_size: 2
gradient_accumulation_steps: 4
learning_rate: 2e-4
"""


def of(more="", base=BASE):
    return translated("axolotl", base + more)


def recipe(more="", base=BASE):
    return resolved(of(more, base))


def test_a_recipe_for_a_whole_model():
    made = recipe(
        """
sequence_len: 2048
sample_packing: true
eval_sample_packing: false
val_set_size: 0.05
evals_per_epoch: 1
num_epochs: 1
optimizer: adamw_torch_fused
adam_beta2: 0.95
lr_scheduler: cosine
cosine_min_lr_ratio: 0.1
warmup_ratio: 0.1
weight_decay: 0.01
bf16: true
tf32: false
gradient_checkpointing: true
gradient_checkpointing_kwargs: {use_reentrant: false}
attn_implementation: flash_attention_2
saves_per_epoch: 1
save_total_limit: 2
output_dir: ./out
logging_steps: 5
wandb_project:
special_tokens: {pad_token: <|pad|>, additional_special_tokens: [<|a|>]}
dataset_prepared_path: prepared
deepspeed:
"""
    )
    assert (made["micro_batch_size"], made["gradient_accumulation_steps"], made["epochs"]) == (2, 4, 1)
    assert (made["eval_at_start"], made["eval_interval"], made["log_interval"]) == (True, "epoch", 5)
    assert made["gradient_clipping"] == 1.0
    model = made["model"]
    assert (model["name_or_path"], model["dtype"], model["weights_dtype"]) == ("org/model", "bf16", "bf16")
    assert (model["attn_implementation"], model["activation_checkpointing"]) == ("flash_attention_2", True)
    assert made["tokenizer"]["special_tokens"] == {"pad_token": "<|pad|>", "extra_special_tokens": ["<|a|>"]}
    data = made["data"]
    assert (data["max_length"], data["pack_samples"], data["overflow"]) == (2048, True, "drop")
    assert list(data["train_eval_split"]) == [0.95, 0.05]
    optimizer, scheduler = made["optimizer"], made["scheduler"]
    assert (optimizer["type"], optimizer["lr"], optimizer["weight_decay"]) == ("adamw", 2e-4, 0.01)
    assert list(optimizer["betas"]) == [0.9, 0.95]
    assert (scheduler["type"], scheduler["warmup_ratio"], scheduler["min_lr_ratio"]) == ("cosine", 0.1, 0.1)
    full, export = made["checkpoint"]
    assert (full["type"], full["save_every_n_epochs"], full["keep_last"]) == ("full", 1, 2)
    assert (export["type"], export["save_end_of_training"]) == ("huggingface", True)
    assert (str(made["run_dir"]), str(export["output_dir"])) == ("out", "out/model")


def test_alpaca_writes_its_prompt_into_the_recipe():
    made = recipe()
    (source,) = made["data"]["sources"]
    assert source["format"] == "alpaca_prompt"
    parts = made["prompts"]["formats"]["alpaca_prompt"]
    assert parts["without_input"] == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:\n"
    )
    assert parts["prompt"].endswith("### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n")


def test_defaults_that_are_not_ours_are_written():
    made = of()
    made_recipe = resolved(made)
    assert (made_recipe["optimizer"]["weight_decay"], made_recipe["scheduler"]["warmup_ratio"]) == (0.0, 0.03)
    assert (made_recipe["model"]["dtype"], made_recipe["model"]["weights_dtype"]) == ("auto", "bf16")
    assert made_recipe["data"]["max_length"] == 512
    assert made_recipe["checkpoint"][0]["keep_last"] == 4
    assert {"data.max_length", "optimizer.weight_decay", "model.dtype"} <= set(made.notes)


def test_an_adapter():
    made = recipe(
        """
adapter: lora
lora_r: 16
lora_alpha: 32
lora_dropout: 0.05
lora_target_linear: true
lora_modules_to_save: [embed_tokens, lm_head]
peft_use_rslora: true
lora_mlp_kernel: true
load_in_8bit: false
"""
    )["peft"]
    assert (made["type"], made["r"], made["alpha"], made["dropout"]) == ("lora", 16, 32, 0.05)
    assert (made["target_modules"], made["use_rslora"]) == ("all-linear", True)
    assert list(made["modules_to_save"]) == ["embed_tokens", "lm_head"]


def test_conversations_with_a_named_template():
    made = recipe(
        """
chat_template: chatml
datasets:
  - path: talks.jsonl
    type: chat_template
    split: train[:10%]
    field_messages: talk
    message_property_mappings: {role: from, content: value}
    roles_to_train: [assistant]
    train_on_eos: turn
  - {path: json, data_files: [more.jsonl], type: chat_template}
""",
        BASE.replace("datasets: [{path: org/rows, type: alpaca}]\n", ""),
    )
    first, second = made["data"]["sources"]
    assert (first["name_or_path"], first["split"], first["format"]) == ("talks.jsonl", "train[:10%]", "sharegpt")
    assert first["columns"] == {"conversations": "talk"}
    assert (second["name_or_path"], second["format"], second["columns"]) == ("more.jsonl", "messages", {})
    assert "<|im_start|>assistant" in made["tokenizer"]["chat_template"]


def test_text_is_causal():
    made = recipe(
        """
pretraining_dataset: [{path: org/books, name: en, type: pretrain, text_column: body}]
max_steps: 100
sample_packing: true
reinit_weights: true
streaming_multipack_buffer_size: 500
""",
        BASE.replace("datasets: [{path: org/rows, type: alpaca}]\n", ""),
    )
    assert (made["type"], made["train_iters"], made["model"]["from_config"]) == ("causal", 100, True)
    (source,) = made["data"]["sources"]
    assert (source["name_or_path"], source["subset"], source["streaming"]) == ("org/books", "en", True)
    assert (made["data"]["text_column"], made["data"]["stream_buffer"]) == ("body", 500)


def test_a_prompt_of_its_own():
    made = recipe(
        """
datasets:
  - path: rows.jsonl
    type:
      system_prompt: Be brief.
      field_instruction: question
      field_output: answer
      format: "[INST] {instruction} {input} [/INST]"
      no_input_format: "[INST] {instruction} [/INST]"
""",
        BASE.replace("datasets: [{path: org/rows, type: alpaca}]\n", ""),
    )
    (source,) = made["data"]["sources"]
    assert source["columns"] == {"instruction": "question", "output": "answer"}
    parts = made["prompts"]["formats"][source["format"]]
    assert parts["without_input"] == "[INST] {instruction} [/INST]"
    assert parts["default_system"] == "Be brief."


def test_liger_uses_only_the_kernels_that_are_asked_for():
    model = recipe(
        """
plugins: [axolotl.integrations.liger.LigerPlugin, axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin]
liger_rope: true
liger_fused_linear_cross_entropy: true
"""
    )["model"]
    assert (model["type"], model["rope"], model["rms_norm"]) == ("liger", None, False)
    assert (model["swiglu"], model["geglu"], model["fused_linear_cross_entropy"]) == (False, False, True)


@pytest.mark.parametrize(
    ("keys", "strategy"),
    [
        ("fsdp_version: 2\nfsdp_config: {offload_params: false, auto_wrap_policy: X}", {"data_parallel": "fsdp2"}),
        (
            "fsdp: [full_shard, auto_wrap]\nfsdp_config: {fsdp_sharding_strategy: FULL_SHARD}",
            {"data_parallel": "fsdp2"},
        ),
        ("deepspeed: deepspeed_configs/zero3_bf16.json", {"type": "deepspeed", "dtype": "bf16"}),
        ("context_parallel_size: 2", {"sequence_parallel": 2}),
        ("ddp_timeout: 60", {"timeout": 60.0}),
    ],
)
def test_strategies(keys, strategy):
    made = recipe(keys)["strategy"]
    assert {name: made[name] for name in strategy} == strategy


QLORA = "adapter: qlora\nlora_target_linear: true\nload_in_4bit: true\n"
HELD = "val_set_size: 0.1\nnum_epochs: 2\n"
TRANSLATED = [
    ("num_epochs: 0.5", "epochs", 0.5),
    ("torch_compile: auto", "model.compile", True),
    ("deepspeed: deepspeed_configs/zero1_torch_compile.json", "model.compile", True),
    ("torch_compile: true\ntorch_compile_backend: aot_eager", "model.compile.backend", "aot_eager"),
    ("torch_compile_backend: aot_eager", "model.compile", None),
    ("tiled_mlp: true\ntiled_mlp_num_shards: 4", "model.tiled_mlp", True),
    ("gradient_checkpointing: offload", "model.activation_offload", True),
    ("gradient_checkpointing: unsloth", "model.activation_checkpointing", True),
    ("gradient_checkpointing: true\nactivation_offloading: legacy", "model.activation_offload", True),
    ("gradient_checkpointing: true\nselective_checkpointing: true", "model.activation_checkpointing", "selective"),
    (HELD + "evals_per_epoch: 4", "eval_interval", 0.25),
    (HELD + "evals_per_epoch: 1", "eval_interval", "epoch"),
    (HELD + "eval_steps: 0.1", "eval_interval", 0.2),
    (HELD + "eval_steps: 0.1\nmax_steps: 95", "eval_interval", 10),
    (HELD + "evals_per_epoch: 4\nmax_steps: 100", "eval_interval", 13),
    (HELD + "eval_strategy: epoch", "eval_interval", "epoch"),
    ("saves_per_epoch: 2", "checkpoint[0].save_every_n_epochs", 0.5),
    ("save_steps: 0.25\nnum_epochs: 2", "checkpoint[0].save_every_n_epochs", 0.5),
    (HELD + "eval_steps: 5\nsave_strategy: best", "checkpoint[0].save_best", "eval/eval/loss"),
    (HELD + "eval_steps: 5\nload_best_model_at_end: true", "checkpoint[1].save_best", "eval/eval/loss"),
    (HELD + "eval_steps: 5\nearly_stopping_patience: 3", "early_stopping.patience", 3),
    ("loss_watchdog_threshold: 5.0", "spike_guard", {"max_loss": 5.0, "action": "keep", "patience": 3}),
    (QLORA, "model.quantization", {"type": "nf4", "double": True}),
    (QLORA + "bnb_config_kwargs: {bnb_4bit_quant_type: fp4}", "model.quantization.type", "fp4"),
    (QLORA.replace("load_in_4bit", "load_in_8bit").replace("qlora", "lora"), "model.quantization", "int8"),
    (QLORA + "base_model: org/model-bnb-4bit", "model.quantization", None),
    ("optimizer: adamw_bnb_8bit", "optimizer.type", "adamw_8bit"),
    ("optimizer: adamw_torch_4bit", "optimizer.type", "adamw_4bit"),
    ("optimizer: paged_adamw_8bit", "strategy.device", "cuda"),
    ("optimizer: paged_adamw_32bit\ndeepspeed: {}", "optimizer.type", "adamw"),
    ("optimizer: lion_8bit\nadam_beta2: 0.99", "optimizer.betas", [0.9, 0.99]),
    (
        "optimizer: muon\nadam_beta2: 0.95",
        "optimizer.groups",
        [
            {
                "match": "embed|lm_head|norm|bias",
                "type": "adamw",
                "lr": 2e-4,
                "weight_decay": 0.0,
                "betas": [0.9, 0.95],
            }
        ],
    ),
    (
        "embedding_lr_scale: 0.5\nlr_groups: [{name: a, modules: [o_proj, q.proj], lr: 1e-5}]",
        "optimizer.groups",
        [
            {"match": r"embed_tokens|lm_head|modules_to_save\.default\.weight$", "lr": 1e-4, "weight_decay": 0.0},
            {"match": r"o_proj|q\.proj", "lr": 1e-5},
        ],
    ),
    (QLORA + "loraplus_lr_ratio: 10", "optimizer.groups", [{"match": "lora_B", "lr": 2e-3}]),
    ("unfrozen_parameters: [^lm_head.weight$, 'model.layers.4[4-9]+.moe']", "model.freeze",
     [r"^(?!^lm_head\.weight$|model\.layers\.4[4-9]+\.moe)"]),
    ("lr_scheduler: cosine_with_restarts\nlr_scheduler_kwargs: {num_cycles: 3}", "scheduler.num_cycles", 3),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "to", "value"), TRANSLATED)
def test_what_hooktrain_has_is_translated(keys, to, value):
    made = of(keys)
    resolved(made)
    assert values_of(made.recipe).get(to) == value


REFUSED = [
    ("load_in_4bit: true", "load_in_4bit", "quantized base: without an adapter"),
    ("base_model: org/model-GPTQ", "base_model", "quantized base: without an adapter"),
    (QLORA + "fsdp: [full_shard]", "load_in_4bit", "quantized base: while ranks share weights"),
    (QLORA + "quantize_moe_experts: true", "quantize_moe_experts", "quantized base"),
    (
        "optimizer: adamw_bnb_8bit\ndeepspeed: {zero_optimization: {stage: 2}}",
        "optimizer",
        "optimizer with small states: while ranks share weights or states",
    ),
    ("optimizer: came_pytorch", "optimizer", "optimizer with small states"),
    ("optimizer: muon\ndeepspeed: {}", "optimizer", "groups: Muon with DeepSpeed"),
    ("unfrozen_parameters: ['^embed.weight$[:32000]']", "unfrozen_parameters", "groups: rows of a weight"),
    ("process_reward_model: true", "process_reward_model", "preferences or reward models"),
    ("rl: grpo", "rl", "rollouts"),
    ("processor_type: AutoProcessor", "processor_type", "images or audio"),
    (
        "torch_compile: true\ntiled_mlp: true",
        "torch_compile",
        "compile: with model.tiled_mlp",
    ),
    ("deepcompile: true", "deepcompile", "compile"),
    (
        "deepspeed: zero3_torch_compile.json",
        "deepspeed",
        "compile: with ZeRO 3, which gathers weights within graphs",
    ),
    (
        "val_set_size: 0.1\neval_steps: 5\nearly_stopping_patience: 3\nmetric_for_best_model: bleu",
        "early_stopping_patience",
        "early stopping by another metric: 'bleu'",
    ),
    ("use_comet: true", "use_comet", "trackers"),
    ("lr_scheduler: one_cycle", "lr_scheduler", "schedules"),
    (
        "gradient_checkpointing: offload_disk",
        "gradient_checkpointing",
        "activation offload or tiled MLP: to a disk",
    ),
    ("tensor_parallel_size: 2", "tensor_parallel_size", "expert, tensor or pipeline parallel"),
    ("qat: {weight_dtype: int8}", "qat", "QAT"),
    ("fp8: true", "fp8", "FP8 training"),
    ("trainer_cls: mine.Trainer", "trainer_cls", "code of its own"),
    ("plugins: [mine.Plugin]", "plugins", "code of its own: mine.Plugin"),
    ("use_eaft: true", "use_eaft", "training method: EAFT"),
    ("relora: true", "relora", "training method: ReLoRA"),
]


@pytest.mark.parametrize(("keys", "key", "reason"), REFUSED)
def test_what_is_refused_says_why(keys, key, reason):
    assert refusals(of(keys))[key] == reason


LIES = [
    ("batch_size: 8", "batch_size", "contradicts another key: gradient_accumulation_steps"),
    ("save_steps: 5\nsaves_per_epoch: 1", "saves_per_epoch", "contradicts another key: save_steps"),
    ("warmup_steps: 5\nwarmup_ratio: 0.1", "warmup_steps", "contradicts another key: warmup_ratio"),
    ("bf16: true\nfp16: true", "fp16", "contradicts another key: bf16"),
    ("sequence_lenn: 5", "sequence_lenn", "unknown key of Axolotl (did you mean 'sequence_len'?)"),
]


@pytest.mark.parametrize(("keys", "key", "reason"), LIES)
def test_recipes_that_lie(keys, key, reason):
    assert refusals(of(keys))[key] == reason


def test_the_account_says_what_was_written():
    """No section is called empty that is not, and a default is the value that was given."""
    made = of("special_tokens: {pad_token: <pad>}\nload_in_8bit: false\nlr_groups:\nresume_from_checkpoint: false")
    reasons = {entry.key: entry.reason for entry in made.ignored}
    assert not {"datasets", "special_tokens"} & reasons.keys()
    assert {"datasets[0].path", "special_tokens.pad_token"} <= {entry.key for entry in made.translated}
    assert (reasons["load_in_8bit"], reasons["lr_groups"]) == ("false is the default", "null is the default")
    assert "no earlier run" in reasons["resume_from_checkpoint"]


def test_only_its_own_recipes_are_recognised():
    axolotl = dialect("axolotl")
    assert axolotl.recognises({"base_model": "org/model", "sequence_len": 5})
    assert not axolotl.recognises({"base_model": "org/model"})
    assert not axolotl.recognises({"model": {"name_or_path": "org/model"}, "data": {"sources": []}})
    assert axolotl.translate({"provider": "modal", "gpu": "h100"}, __file__).not_a_recipe
