"""Recipes of ArcticTraining: what they become, with the values written by hand."""

from __future__ import annotations

import copy

import pytest

from tests.plugins.recipes.translating import dialect, refusals, resolved, translated

SMALL = {
    "type": "sft",
    "model": {"name_or_path": "org/model"},
    "data": {"sources": ["org/rows"]},
    "logger": {"level": "INFO"},
}


def changed(**sections):
    made = copy.deepcopy(SMALL)
    for name, value in sections.items():
        made[name] = {**made[name], **value} if isinstance(made.get(name), dict) and isinstance(value, dict) else value
    return made


def test_a_recipe_for_conversations():
    recipe = resolved(
        translated(
            "arctic",
            """
            type: sft
            micro_batch_size: 1
            gradient_accumulation_steps: 4
            exit_iteration: 30
            min_iterations: 30
            sequence_parallel_size: 2
            deepspeed:
              zero_optimization:
                stage: 3
                offload_optimizer: {device: cpu}
              seq_parallel_communication_data_type: bf16
              gradient_clipping: 0.5
            optimizer: {type: cpu_adam, learning_rate: 1e-5}
            model: {type: liger, name_or_path: org/model, attn_implementation: flash_attention_2}
            data:
              sources:
                - type: huggingface_instruct
                  name_or_path: org/rows
                  split: train_sft
                  role_mapping: {user: messages.role.user, assistant: messages.role.assistant}
              cache_dir: cache
              dl_num_workers: 1
              max_length: 36_000
            logger: {level: WARNING, output_dir: logs, print_output_ranks: [0, 1]}
            checkpoint: [{type: huggingface, save_end_of_training: true, output_dir: out}]
            """,
        )
    )
    assert (recipe["micro_batch_size"], recipe["gradient_accumulation_steps"]) == (1, 4)
    assert (recipe["exit_iteration"], recipe["min_iterations"], recipe["gradient_clipping"]) == (30, 30, 0.5)
    strategy = recipe["strategy"]
    assert (strategy["type"], strategy["sequence_parallel"], strategy["zero_stage"]) == ("deepspeed", 2, None)
    assert strategy["config"] == {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}
    assert (recipe["optimizer"]["type"], recipe["optimizer"]["lr"]) == ("cpu_adam", 1e-5)
    model = recipe["model"]
    assert (model["type"], model["dtype"], model["activation_checkpointing"]) == ("liger", "bf16", True)
    (source,) = recipe["data"]["sources"]
    assert (source["name_or_path"], source["split"]) == ("org/rows", "train_sft")
    assert source["role_mapping"] == {"user": "messages.role.user", "assistant": "messages.role.assistant"}
    data = recipe["data"]
    assert (data["max_length"], data["workers"], data["cache_dir"], data["overflow"]) == (36000, 1, "cache", "drop")
    assert (recipe["scheduler"]["type"], recipe["scheduler"]["warmup_ratio"]) == ("linear", 0.1)
    (engine,) = recipe["checkpoint"]
    assert (engine["type"], engine["save_end_of_training"], engine["output_dir"]) == ("huggingface", True, "out")


def test_a_recipe_for_text():
    recipe = resolved(
        translated(
            "arctic",
            """
            type: causal
            train_iters: 2k
            model: {name_or_path: org/model, dtype: torch.float16, disable_activation_checkpoint: true}
            scheduler: {name: cosine, warmup_ratio: 5%}
            optimizer: {lr: 1e-3, betas: [0.9, 0.95], weight_decay: 0.0}
            data:
              sources: [{type: huggingface_causal, name_or_path: "org/books:train[:100]", column: body, sample_count: 1_000}]
              eval_sources: [org/books]
              seed: 7
            eval_interval: 10
            loss_log_interval: 5
            train_log_iter_interval: 1
            wandb: {enable: false}
            checkpoint: {type: deepspeed, output_dir: out, save_every_n_steps: 100, auto_resume: true}
            """,
        )
    )
    assert (recipe["type"], recipe["train_iters"], recipe["epochs"]) == ("causal", 2000, 1)
    assert (recipe["eval_interval"], recipe["log_interval"]) == (10, 5)
    assert (recipe["model"]["dtype"], recipe["model"]["activation_checkpointing"]) == ("fp16", False)
    assert recipe["optimizer"] == {
        "type": "adamw", "lr": 1e-3, "weight_decay": 0.0, "betas": [0.9, 0.95], "eps": 1e-8, "decay_vectors": False,
        "fused": None, "groups": [],
    }  # fmt: skip
    assert (recipe["scheduler"]["type"], recipe["scheduler"]["warmup_ratio"]) == ("cosine", 0.05)
    data = recipe["data"]
    assert (data["text_column"], data["seed"], data["overflow"]) == ("body", 7, "split")
    assert (data["sources"][0]["name_or_path"], data["sources"][0]["sample_count"]) == ("org/books:train[:100]", 1000)
    assert (data["eval_sources"][0]["name_or_path"], data["eval_sources"][0]["split"]) == ("org/books", "eval")
    assert recipe["strategy"]["zero_stage"] == 0
    assert recipe["checkpoint"][0]["save_every_n_steps"] == 100


def test_the_least_recipe_has_the_other_program_s_defaults():
    recipe = resolved(translated("arctic", SMALL))
    assert (recipe["type"], recipe["optimizer"]["lr"], recipe["scheduler"]["type"]) == ("sft", 5e-4, "linear")
    assert recipe["data"]["sources"][0]["role_mapping"] == {"user": "user", "assistant": "assistant"}
    assert recipe["model"]["attn_implementation"] == "sdpa"


def test_an_adapter():
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 16, "target_modules": ["q_proj"], "layers_to_transform": [0]}
    recipe = resolved(translated("arctic", changed(model={"peft_config": config})))
    peft = recipe["peft"]
    assert (peft["type"], peft["r"], peft["alpha"], peft["target_modules"]) == ("lora", 4, 16.0, ["q_proj"])
    assert peft["config"] == {"layers_to_transform": [0]}


def test_activations_and_mlps():
    model = resolved(translated("arctic", changed(activation_checkpoint_cpu_offload=True, tiled_mlp_compute=True)))[
        "model"
    ]
    assert (model["activation_checkpointing"], model["activation_offload"], model["tiled_mlp"]) == (True, True, True)


def test_known_data_sets_are_left_to_hooktrain():
    made = translated("arctic", changed(data={"sources": ["HuggingFaceH4/ultrachat_200k:train[:10]", "org/rows"]}))
    first, second = made.recipe["data"]["sources"]
    assert "role_mapping" not in first
    assert second["role_mapping"] == {"user": "user", "assistant": "assistant"}


@pytest.mark.parametrize(
    ("recipe", "refused"),
    [
        (changed(type="mine", code="mine.py", knob=1), {"type": "code of its own", "code": "mine.py", "knob": "code of its own"}),
        (changed(data={"sources": [{"type": "snowflake", "sql": "SELECT"}]}), {"data.sources[0]": "account"}),
        (changed(data={"sources": [{"type": "mine", "name_or_path": "x"}]}), {"data.sources[0]": "code of its own"}),
        (changed(data={"sources": [{"name_or_path": "x", "role_mapping": {"assistant": "a", "user": "b"}}]}), {"data.sources[0].role_mapping": "order of these roles"}),
        (changed(tiled_mlp_compute=True, deepspeed={"zero_optimization": {"stage": 3}}), {"tiled_mlp_compute": "ZeRO 3"}),
        (changed(expert_parallel_size=8, arctic_moe=True), {"expert_parallel_size": "expert", "arctic_moe": "expert"}),
        (changed(scheduler={"name": "greedy"}), {"scheduler.name": "schedules"}),
        (changed(deepspeed={"bf16": {"enabled": True, "bf16_optimizer_states": True}}), {"deepspeed.bf16.bf16_optimizer_states": "small states"}),
        (changed(deepspeed={"zero_optimization": {"offload_param": {"device": "nvme"}}}), {"deepspeed.zero_optimization.offload_param.device": "NVMe"}),
        (changed(data={"pack_samples": True, "fuse_positions_prob": 0.1}), {"data.fuse_positions_prob": "training method"}),
        (changed(optimizer={"lr": 1.0, "learning_rate": 1.0}), {"optimizer.learning_rate": "contradicts"}),
        (changed(micro_batch_size="several"), {"micro_batch_size": "expected a number"}),
        (changed(data={"max_lenght": 3}), {"data.max_lenght": "did you mean 'data.max_length'"}),
        (changed(model="org/model"), {"model": "expected keys"}),
    ],
    ids=lambda value: next(iter(value)) if set(value) - {"type", "model", "data", "logger"} else "",
)  # fmt: skip
def test_what_is_not_supported_says_why(recipe, refused):
    found = refusals(translated("arctic", recipe))
    assert found.keys() == refused.keys()
    for key, words in refused.items():
        assert words in found[key], found[key]


def test_no_effect_is_told_with_a_reason():
    made = translated("arctic", changed(data={"fuse_positions_prob": 0.1, "div_length": 8}, arctic_moe=True))
    reasons = {entry.key: entry.reason for entry in made.ignored}
    assert "packing is off" in reasons["data.fuse_positions_prob"]
    assert "padding" in reasons["data.div_length"]
    assert {"arctic_moe", "logger.level"} <= reasons.keys()


def test_code_beside_the_recipe_is_told_of_and_never_run(tmp_path):
    (tmp_path / "train.py").write_text("raise SystemExit('was run')\n")
    found = refusals(dialect("arctic").translate(SMALL, tmp_path))
    assert "train.py" in found["code"]


@pytest.mark.parametrize("raw", [{"name": "dpo", "channels": ["a"]}, {"data": {"rows": 3}}, {}])
def test_other_files_are_no_recipes(raw):
    assert translated("arctic", raw).not_a_recipe


@pytest.mark.parametrize(
    ("raw", "known"),
    [
        (SMALL, True),
        ({key: value for key, value in SMALL.items() if key != "logger"}, False),
        (changed(model={"type": "huggingface"}, data={"sources": [{"type": "huggingface_instruct", "name_or_path": "x"}]}), True),
        ({"logger": {"level": "INFO"}}, False),
        ({"base_model": "x", "datasets": [{"path": "y"}], "wandb_project": "z"}, False),
    ],
    ids=["logger", "native", "source", "no model", "axolotl"],
)  # fmt: skip
def test_recognises(raw, known):
    assert dialect("arctic").recognises(raw) is known


def test_numbers_for_people():
    made = translated("arctic", changed(data={"max_length": "16k", "seed": "1_000"}, optimizer={"lr": "10^-5"}))
    assert (made.recipe["data"]["max_length"], made.recipe["data"]["seed"]) == (16000, 1000)
    assert made.recipe["optimizer"]["lr"] == pytest.approx(1e-5)
