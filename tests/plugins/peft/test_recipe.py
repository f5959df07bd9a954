"""Settings of the section ``peft`` and errors in them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hooktrain_peft.config import PeftSettings
from hooktrain_peft.methods import make_config
from peft import IA3Config, LoraConfig, VeraConfig

from hooktrain import ModelError, Recipe, RecipeError, load
from tests.facts import facts

Run = Callable[..., Any]


@pytest.mark.usefixtures("real_starts")
def test_importing_the_plugin_loads_no_heavy_library() -> None:
    code = (
        "import sys, hooktrain_peft.plugin;"
        "print([m for m in ('torch', 'transformers', 'peft', 'safetensors') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.usefixtures("real_starts")
def test_a_recipe_without_the_section_does_not_import_peft(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe.pop("peft")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    code = (
        "import sys; from pathlib import Path; from hooktrain import load;"
        f"load(Path({str(path)!r})); print('peft' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_lora_has_the_defaults_that_people_choose() -> None:
    config = make_config(PeftSettings(type="lora"))
    assert isinstance(config, LoraConfig)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (16, 32, 0.0)
    assert config.target_modules == "all-linear" and config.task_type == "CAUSAL_LM"
    assert make_config(PeftSettings(type="lora", r=4)).lora_alpha == 8


@pytest.mark.parametrize("name", ["lora", "LORA", "Lora", "LoraConfig"])
def test_methods_have_the_names_of_peft_and_of_arctictraining(name: str) -> None:
    assert isinstance(make_config(PeftSettings(type=name)), LoraConfig)


def test_the_keys_of_trl_axolotl_and_peft_mean_the_same(recipe: dict[str, Any]) -> None:
    theirs = {
        "peft_type": "LORA",
        "lora_r": 4,
        "lora_alpha": 12,
        "lora_dropout": 0.1,
        "lora_target_modules": ["q_proj"],
    }
    assert load({**recipe, "peft": "lora"})[0].settings["peft"] == PeftSettings(type="lora")
    ours = {"type": "lora", "r": 4, "alpha": 12, "dropout": 0.1, "target_modules": ["q_proj"]}
    made = [load({**recipe, "peft": spelling})[0].settings["peft"] for spelling in (theirs, ours)]
    configs = [make_config(settings).to_dict() for settings in made]
    assert configs[0] == configs[1]
    assert configs[0]["target_modules"] == {"q_proj"} and configs[0]["lora_alpha"] == 12


def test_other_methods_take_keys_by_their_own_spelling() -> None:
    vera = make_config(PeftSettings(type="vera", r=8, dropout=0.1, config={"d_initial": 0.2}))
    assert isinstance(vera, VeraConfig) and (vera.r, vera.vera_dropout, vera.d_initial) == (8, 0.1, 0.2)
    ia3 = make_config(PeftSettings(type="ia3", target_modules=("k_proj",), config={"feedforward_modules": []}))
    assert isinstance(ia3, IA3Config) and ia3.target_modules == {"k_proj"}


def test_a_resolved_recipe_reads_back_equal(recipe: dict[str, Any]) -> None:
    peft = {"type": "lora", "r": 4, "modules_to_save": ["lm_head"], "config": {"rank_pattern": {"q_proj": 2}}}
    made: Recipe = load({**recipe, "peft": peft})[0]
    again: Recipe = load(yaml.safe_load(made.as_yaml()))[0]
    assert again.digest() == made.digest()


def complaints(recipe: dict[str, Any], **changes: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load({**recipe, **changes})
    return [str(complaint) for complaint in caught.value.complaints]


@pytest.mark.parametrize(
    ("peft", "expected"),
    [
        (
            {"type": "lorra"},
            ["peft.type", "given 'lorra'", "'lora'"],
        ),
        ({"type": "qlora"}, ["peft.type", "'qlora'", "4 bits", "type: lora", "model.quantization: nf4"]),
        ({"type": "dora"}, ["peft.type", "'dora'", "type: lora and use_dora: true"]),
        (
            {"type": "adalora", "r": 4},
            ["peft.config.target_r", "is 8", "peft.r, is 4", "smaller"],
        ),
        (
            {"type": "prompt_tuning", "config": {"num_virtual_tokens": 4}},
            ["peft: ", "'prompt_tuning'", "virtual tokens", "such as lora"],
        ),
        (
            {"type": "prefix-tuning", "config": {"num_virtual_tokens": 4}},
            ["peft: ", "'prefix_tuning'", "packed", "such as lora"],
        ),
        ({"type": "lily"}, ["peft: ", "'lily'", "all tokens of a micro-batch", "such as lora"]),
        ({"type": "poly"}, ["peft: ", "'poly'", "number of a task", "such as lora"]),
        ({"type": "lora", "ranks": 8}, ["peft.ranks:", "'rank'"]),
        ({"type": "lora", "r": 0}, ["peft.r:", "given 0", "at least 1"]),
        ({"type": "lora", "dropout": 1.5}, ["peft.dropout:", "given 1.5", "0 to 1"]),
        (
            {"type": "lora", "config": {"rank_patern": {}}},
            ["peft.config.rank_patern:", "'rank_pattern'"],
        ),
        ({"type": "lora", "config": {"task_type": "SEQ_CLS"}}, ["peft.config.task_type:", "Lora", "lora_alpha, "]),
        ({"type": "lora", "alpha": 8, "config": {"lora_alpha": 4}}, ["peft.alpha:", "peft.config.lora_alpha"]),
        ({"type": "ia3", "r": 8}, ["peft.r:", "given 8", "IA3"]),
        (
            {"type": "lora", "init_lora_weights": "eva"},
            ["peft: ", "init_lora_weights", "'eva'", "a pass over the data", "true, "],
        ),
        (
            {"type": "lora", "init_lora_weights": "pissa_niter_4"},
            ["peft: ", "init_lora_weights", "'pissa_niter_4'", "the same adapter", "true, "],
        ),
        ({"type": "lora", "config": {"alora_invocation_tokens": [1]}}, ["peft: ", "alora_invocation_tokens"]),
        (
            {"type": "lora", "config": {"layers_to_transform": [0]}, "target_modules": ".*q_proj"},
            ["peft: ", "Lora", "layers_to_transform"],
        ),
        ({"r": 8}, ["peft.r:", "peft.type", "'type: lora'"]),
        ({"merge_on_export": True}, ["peft.merge_on_export:", "peft.type", "'type: lora'"]),
        ({"adapter": "x", "r": 8}, ["peft.r:", "peft.adapter"]),
    ],
    ids=str,
)
def test_an_error_names_its_place(recipe: dict[str, Any], peft: dict[str, Any], expected: str) -> None:
    (message,) = complaints(recipe, peft=peft)
    assert re.search(facts(*expected), message)


def test_all_errors_are_reported_at_once(recipe: dict[str, Any]) -> None:
    found = complaints(
        recipe, model={**recipe["model"], "from_config": True}, peft={"type": "ia3", "r": 8, "config": {"x": 1}}
    )
    assert [line.split(":")[0] for line in found] == ["peft.config.x", "peft.r", "peft"]
    assert re.search(facts("model.from_config", "random weights", "adapter"), found[-1])


@pytest.mark.parametrize(
    ("peft", "expected"),
    [
        (
            {"type": "lora", "target_modules": ["w_q"]},
            facts("peft", "'lora'", "LlamaForCausalLM", "w_q", "peft.target_modules"),
        ),
        ({"adapter": "nowhere"}, facts("peft.adapter", "'nowhere'", "adapter_config.json")),
        (
            {"type": "lora", "target_modules": ["embed_tokens", "lm_head"], "config": {"ensure_weight_tying": True}},
            facts("peft", "ensure_weight_tying", "twice in each step", "peft.modules_to_save"),
        ),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_the_model_are_refused(run: Run, peft: dict[str, Any], expected: str) -> None:
    with pytest.raises(ModelError, match=expected):
        run(peft=peft)


def test_a_model_that_is_not_transformers_is_refused(run_tiny: Run) -> None:
    with pytest.raises(
        ModelError, match=facts("peft: ", "TinyModel", "expected a transformers model", "huggingface or liger")
    ):
        run_tiny(peft={"type": "lora"})
