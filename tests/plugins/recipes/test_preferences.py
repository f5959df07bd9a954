"""Preferences in recipes of other programs: what they become, with the values written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hooktrain.recipe.dialects import values_of
from tests.plugins.recipes.translating import refusals, resolved, translated

TRL: dict[str, Any] = {"model_name_or_path": "org/model", "dataset_name": "org/pairs"}
AXOLOTL: dict[str, Any] = {
    "base_model": "org/model",
    "datasets": [{"path": "org/pairs", "type": "chat_template.default", "field_messages": "conversation"}],
    "learning_rate": 0.1,
    "micro_batch_size": 2,
}
LLAMA: dict[str, Any] = {
    "model_name_or_path": "org/model",
    "do_train": True,
    "stage": "dpo",
    "dataset": "dpo_en_demo",
    "template": "llama3",
    "finetuning_type": "full",
}
LORA = {"use_peft": True, "lora_target_modules": "all-linear"}
ARCTIC: dict[str, Any] = {
    "type": "dpo",
    "model": {"name_or_path": "org/model"},
    "ref_model": {"name_or_path": "org/model", "type": "liger", "attn_implementation": "sdpa"},
    "data": {"sources": ["org/pairs"], "max_length": 128},
}


def test_dpo_of_the_handbook() -> None:
    pairs = {"id": "org/pairs", "split": "train_prefs", "columns": ["chosen", "rejected"]}
    recipe = {
        "model_name_or_path": "org/model",
        "dataset_mixture": {"datasets": [pairs], "test_split_size": 100},
        "beta": 0.05,
        "loss_type": "apo_zero",
        "max_length": 512,
        "max_prompt_length": 256,
        "eval_strategy": "steps",
    }
    made = resolved(translated("trl", recipe))
    assert (made["type"], made["loss"]["type"], made["loss"]["loss_type"]) == ("preference", "dpo", "apo_zero")
    assert (made["loss"]["beta"], made["optimizer"]["lr"]) == (0.05, 1e-6)
    data = made["data"]
    assert (data["type"], data["max_length"], data["overflow"]) == ("preference", 512, "drop")
    assert (data["train_on"], data["val_size"], data["sources"][0]["format"]) == ("completion", 100, None)
    assert made["models"]["reference"]["type"] == "auto"


@pytest.mark.parametrize(
    ("folder", "more", "loss"),
    [
        ("dpo", {}, {"type": "dpo", "loss_type": "sigmoid"}),
        ("orpo", {"beta": 0.2}, {"type": "orpo", "beta": 0.2}),
        ("cpo", {"cpo_alpha": 0.5}, {"type": "cpo", "cpo_alpha": 0.5}),
        ("any", {"loss_type": "simpo", "cpo_alpha": 0.0}, {"type": "simpo", "beta": 0.1, "gamma": 0.5}),
        ("kto", {"desirable_weight": 0.5}, {"type": "kto", "desirable_weight": 0.5}),
        ("any", {"loss_type": "apo_zero_unpaired"}, {"type": "kto", "loss_type": "apo_zero_unpaired"}),
        ("reward", {"center_rewards_coefficient": 0.01}, {"type": "reward", "center_rewards_coefficient": 0.01}),
        (
            "any",
            {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.8, 1.0]},
            {"type": "dpo", "loss_type": {"sigmoid": 0.8, "sft": 1.0}},
        ),
        ("any", {"loss_type": ["ipo"]}, {"type": "dpo", "loss_type": "ipo"}),
        ("any", {"loss_type": "robust", "label_smoothing": 0.1}, {"loss_type": "robust", "label_smoothing": 0.1}),
        ("any", {"label_smoothing": 0.1, "beta": 0.3}, {"loss_type": "sigmoid", "label_smoothing": 0.0, "beta": 0.3}),
    ],
)
def test_losses_of_trl_s_scripts(tmp_path: Path, folder: str, more: dict[str, Any], loss: dict[str, Any]) -> None:
    place = tmp_path / folder
    place.mkdir()
    made = resolved(translated("trl", {**TRL, **more}, place))
    assert made["type"] == (loss["type"] if loss.get("type") in ("kto", "reward") else "preference")
    assert {key: made["loss"][key] for key in loss} == loss


def test_the_folder_is_told_where_it_names_the_script(tmp_path: Path) -> None:
    (tmp_path / "orpo").mkdir()
    assert "the folder orpo" in translated("trl", TRL, tmp_path / "orpo").notes["loss.type"]
    assert translated("trl", TRL, tmp_path).recipe["type"] == "sft"


def test_dropout_is_off_as_in_trl() -> None:
    made = translated("trl", {**TRL, **LORA, "beta": 0.1, "lora_dropout": 0.1})
    assert resolved(made)["peft"]["dropout"] == 0.0
    assert "dropout is turned off" in {entry.key: entry.reason for entry in made.ignored}["lora_dropout"]
    kept = translated("trl", {**TRL, **LORA, "beta": 0.1, "lora_dropout": 0.1, "disable_dropout": False})
    assert resolved(kept)["peft"]["dropout"] == 0.1
    axolotl = {**AXOLOTL, "rl": "dpo", "adapter": "lora", "lora_target_linear": True, "lora_dropout": 0.1}
    assert resolved(translated("axolotl", axolotl))["peft"]["dropout"] == 0.0


def test_the_reference_of_trl() -> None:
    more = {"force_use_ref_model": True, "ref_model_init_kwargs": {"dtype": "bfloat16", "attn_implementation": "sdpa"}}
    reference = resolved(translated("trl", {**TRL, **LORA, "beta": 0.1, **more}))["models"]["reference"]
    assert (reference["type"], reference["dtype"]) == ("copy", "bf16")


@pytest.mark.parametrize(
    ("more", "loss"),
    [
        ({"rl": "dpo"}, {"type": "dpo", "loss_type": "sigmoid", "beta": 0.1}),
        ({"rl": "ipo", "rl_beta": 0.2}, {"type": "dpo", "loss_type": "ipo", "beta": 0.2}),
        ({"rl": "dpo", "dpo_loss_type": ["hinge"], "trl": {"beta": 0.3}}, {"loss_type": "hinge", "beta": 0.3}),
        (
            {
                "rl": "kto",
                "rl_beta": 0.5,
                "kto_desirable_weight": 0.2,
                "datasets": [{"path": "p", "type": "llama3.ultra"}],
            },
            {"type": "kto", "beta": 0.5, "desirable_weight": 0.2},
        ),
        (
            {
                "reward_model": True,
                "num_labels": 1,
                "center_rewards_coefficient": 0.01,
                "model_type": "AutoModelForSequenceClassification",
                "datasets": [{"path": "p", "type": "bradley_terry.chat_template"}],
            },
            {"type": "reward", "center_rewards_coefficient": 0.01},
        ),
        ({"rl": "orpo", "orpo_alpha": 0.2}, {"type": "orpo", "beta": 0.2}),
        ({"rl": "simpo", "simpo_gamma": 0.7, "cpo_alpha": 0}, {"type": "simpo", "gamma": 0.7, "beta": 0.1}),
    ],
)
def test_losses_of_axolotl(more: dict[str, Any], loss: dict[str, Any]) -> None:
    made = resolved(translated("axolotl", {**AXOLOTL, **more}))
    assert made["type"] == (loss["type"] if loss.get("type") in ("kto", "reward") else "preference")
    assert {key: made["loss"][key] for key in loss} == loss


USER = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
CHATML = {
    "prompt": USER,
    "with_system": "<|im_start|>system\n{system}<|im_end|>\n" + USER,
    "chosen": "{chosen}<|im_end|>",
    "rejected": "{rejected}<|im_end|>",
}


@pytest.mark.parametrize(
    ("entry", "pairs", "columns"),
    [
        (
            {
                "type": "chat_template.default",
                "field_messages": "conversation",
                "field_chosen": "good",
                "message_property_mappings": {"role": "from", "content": "value"},
                "roles": {"assistant": ["bot"]},
            },
            {"fields": {"role": "from", "content": "value"}, "roles": {"bot": "assistant"}},
            {"prompt": "conversation", "chosen": "good"},
        ),
        ({"type": "chatml.ultra"}, CHATML, None),
        ({"type": "chatml.intel"}, {**CHATML, "prompt_columns": ["question"]}, None),
        (
            {"type": {"field_prompt": "ask", "prompt_format": "[{system}] {prompt}", "chosen_format": "{chosen}!"}},
            {"prompt": "[{system}] {prompt}", "chosen": "{chosen}!"},
            {"prompt": "ask"},
        ),
    ],
)
def test_types_of_pairs(entry: dict[str, Any], pairs: dict[str, Any], columns: dict[str, str] | None) -> None:
    raw = {**AXOLOTL, "rl": "dpo", "datasets": [{"path": "org/pairs", **entry}]}
    made = translated("axolotl", raw)
    resolved(made)
    (source,) = made.recipe["data"]["sources"]
    assert source.get("columns") == columns
    assert made.recipe["prompts"]["pairs"][source["format"]] == pairs


def test_orpo_s_conversations_begin_with_the_system() -> None:
    made = translated(
        "axolotl", {**AXOLOTL, "rl": "orpo", "datasets": [{"path": "p", "type": "chat_template.argilla"}]}
    )
    assert made.recipe["prompts"]["pairs"] == {"pairs": {"system_column": True}}


@pytest.mark.parametrize(
    ("more", "loss"),
    [
        ({}, {"type": "dpo", "loss_type": "sigmoid", "beta": 0.1}),
        ({"pref_loss": "sigmoid", "dpo_label_smoothing": 0.1, "pref_beta": 0.2}, {"label_smoothing": 0.1, "beta": 0.2}),
        ({"pref_loss": "ipo", "dpo_label_smoothing": 0.1}, {"loss_type": "ipo", "label_smoothing": 0.0}),
        ({"pref_loss": "orpo", "pref_beta": 0.2}, {"type": "orpo", "beta": 0.2}),
        ({"pref_loss": "simpo", "simpo_gamma": 0.7}, {"type": "simpo", "gamma": 0.7, "beta": 0.1}),
    ],
)
def test_losses_of_llama_factory(more: dict[str, Any], loss: dict[str, Any]) -> None:
    made = resolved(translated("llamafactory", {**LLAMA, **more}))
    assert (made["type"], made["data"]["overflow"]) == ("preference", "drop")
    assert {key: made["loss"][key] for key in loss} == loss


def test_sets_of_pairs_in_dataset_info(tmp_path: Path) -> None:
    info = {
        "talks": {"ranking": True, "formatting": "sharegpt", "columns": {"messages": "talk", "chosen": "good"}},
        "asks": {"ranking": True, "columns": {"prompt": "ask", "query": "more", "system": "rules"}},
    }
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info))
    made = translated("llamafactory", {**LLAMA, "dataset": "talks,asks", "ref_model": "org/old"}, tmp_path)
    recipe = resolved(made)
    talks, asks = recipe["data"]["sources"]
    assert talks["columns"] == {"prompt": "talk", "chosen": "good"} and asks["columns"] == {"system": "rules"}
    first, second = made.recipe["prompts"]["pairs"].values()
    assert first["fields"] == {"role": "from", "content": "value"}
    assert first["roles"]["human"] == "user" and first["roles"]["gpt"] == "assistant"
    assert second == {"system_column": True, "prompt_columns": ["ask", "more"]}
    reference = recipe["models"]["reference"]
    assert (reference["type"], reference["name_or_path"]) == ("huggingface", "org/old")


def test_kto_and_reward_models_of_llama_factory() -> None:
    kto = {**LLAMA, "stage": "kto", "dataset": "kto_en_demo", "pref_beta": 0.2, "kto_chosen_weight": 0.5}
    batches = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    made = translated("llamafactory", {**kto, **batches})
    recipe = resolved(made)
    assert (recipe["type"], recipe["loss"]["beta"], recipe["loss"]["desirable_weight"]) == ("kto", 0.2, 0.5)
    assert (recipe["micro_batch_size"], recipe["gradient_accumulation_steps"]) == (2, 4)
    assert recipe["data"]["sources"][0]["columns"] == {"completion": "messages"}
    assert "other prompts" in made.notes["micro_batch_size"]
    alone = refusals(translated("llamafactory", {**kto, "per_device_train_batch_size": 1}))
    assert "one answer in a micro-batch" in alone["per_device_train_batch_size"]
    reward = resolved(translated("llamafactory", {**LLAMA, "stage": "rm"}))
    assert (reward["type"], reward["loss"]["type"]) == ("reward", "reward")


def test_pairs_of_the_second_generation(tmp_path: Path) -> None:
    (tmp_path / "sets.yaml").write_text(json.dumps({"rows": {"path": "org/pairs", "converter": "pair"}}))
    raw = {"model": "org/model", "train_dataset": "sets.yaml", "pref_beta": 0.2, "cutoff_len": 64}
    made = resolved(translated("llamafactory", raw, tmp_path))
    assert (made["type"], made["loss"]["beta"], made["data"]["overflow"]) == ("preference", 0.2, "drop")


def test_dpo_of_arctic() -> None:
    made = resolved(translated("arctic", {**ARCTIC, "beta": 0.2, "label_smoothing": 0.1}))
    assert (made["type"], made["loss"]["beta"], made["loss"]["label_smoothing"]) == ("preference", 0.2, 0.1)
    assert made["models"]["reference"]["type"] == "copy"
    other = resolved(translated("arctic", {**ARCTIC, "ref_model": {"name_or_path": "org/other"}}))
    assert other["models"]["reference"]["name_or_path"] == "org/other"
    assert (made["data"]["overflow"], made["data"]["train_on"]) == ("drop", "completion")


@pytest.mark.parametrize(
    ("name", "raw", "refused"),
    [
        ("trl", {**TRL, "loss_type": "aot"}, {"loss_type": "the loss aot"}),
        ("trl", {**TRL, "loss_type": ["sigmoid", "aot"]}, {"loss_type": "sigmoid with aot"}),
        ("axolotl", {**AXOLOTL, "reward_model": True, "num_labels": 2}, {"num_labels": "one output", "datasets[0].type": "preferences"}),
        ("trl", {**TRL, "loss_type": "simpo"}, {"loss_type": "cpo_alpha"}),
        ("trl", {**TRL, "beta": 0.1, "sync_ref_model": True}, {"sync_ref_model": "preferences"}),
        ("trl", {**TRL, "beta": 0.1, "f_divergence_type": "js_divergence"}, {"f_divergence_type": "preferences"}),
        ("axolotl", {**AXOLOTL, "rl": "simpo"}, {"rl": "cpo_alpha"}),
        ("axolotl", {**AXOLOTL, "rl": "dpo", "rpo_alpha": 1.0}, {"rpo_alpha": "preferences"}),
        ("axolotl", {**AXOLOTL, "rl": "dpo", "rl_beta": 0.1, "dpo_beta": 0.2}, {"dpo_beta": "contradicts"}),
        ("llamafactory", {**LLAMA, "pref_loss": "kto_pair"}, {"pref_loss": "kto_pair"}),
        ("llamafactory", {**LLAMA, "pref_ftx": 0.1}, {"pref_ftx": "preferences"}),
        ("arctic", {**ARCTIC, "ref_model": {"name_or_path": "x", "peft_config": {"r": 1}}}, {"ref_model.peft_config": "preferences"}),
    ],
)  # fmt: skip
def test_what_is_not_supported_says_why(name: str, raw: dict[str, Any], refused: dict[str, str]) -> None:
    found = refusals(translated(name, raw))
    assert found.keys() == refused.keys()
    for key, words in refused.items():
        assert words in found[key], found[key]


def test_without_preferences_their_keys_have_no_effect() -> None:
    made = translated("axolotl", {**AXOLOTL, "datasets": [{"path": "a", "type": "alpaca"}], "rl_beta": 0.1})
    assert values_of(made.recipe)["type"] == "sft" and not made.unsupported
