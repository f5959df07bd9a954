"""The JSON Schema of recipes: it takes what the strict reader takes, and refuses what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import attrs
import jsonschema
import pytest
import yaml

from hooktrain import RecipeError, one_of
from hooktrain import field as a_field
from hooktrain.recipe.json_schema import field_docs, schema_of
from hooktrain.recipe.resolver import resolve
from hooktrain.testing import TinyPlugin, host_of
from hooktrain.training.load import make_host
from tests.refused_recipes import REFUSED, Parts

ROOT = Path(__file__).parents[2]


def checker(host):
    schema = json.loads(json.dumps(schema_of(host)))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture(scope="module")
def installed():
    """A host with all installed plugins and the tiny one, and the validator of its schema."""
    host = make_host()
    host.register(TinyPlugin())
    return host, checker(host)


def documented():
    """Every YAML block of the documentation that is a recipe, or a piece of one."""
    pages = [
        ROOT / "README.md",
        *sorted((ROOT / "plugins").glob("*/README.md")),
        *sorted(ROOT.glob("hooktrain/**/*.md")),
    ]
    for page in pages:
        for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)):
            yield pytest.param(block, id=f"{page.parent.name}-{number}")


def test_the_demo_and_the_recipes_of_the_tests(installed, tiny_recipe, chat_recipe):
    host, validator = installed
    for raw in (yaml.safe_load((ROOT / "hooktrain" / "cli" / "demo.yaml").read_text()), tiny_recipe, chat_recipe):
        validator.validate(raw)
        made = resolve(raw, host)
        validator.validate(json.loads(json.dumps(made.as_dict(), default=str)))


@pytest.mark.parametrize("block", list(documented()))
def test_what_the_documentation_says(installed, block):
    host, validator = installed
    raw = yaml.safe_load(block)
    if not isinstance(raw, dict) or not set(raw) <= set(validator.schema["properties"]):
        pytest.skip("no recipe")
    needed = {} if raw.get("type") == "tiny" else {"model": {"name_or_path": "x"}, "data": {"sources": ["rows.jsonl"]}}
    raw = {**needed, **raw}
    for part, values in needed.items():
        if isinstance(raw[part], dict):
            raw[part] = {**values, **raw[part]}
    resolve(raw, host)
    validator.validate(raw)


GOOD = [
    {"optimizer": "sgd"},
    {"optimizer": {"lr": "1e-4"}},
    {"optimizer": {"learning_rate": 1}},
    {"optimizer": None, "checkpoint": None},
    {"checkpoint": "full"},
    {"checkpoint": {"type": "huggingface", "save_every_n_steps": 3}},
    {"checkpoint": [{"save_end_of_training": True}, "huggingface"]},
    {"strategy": {"type": "deepspeed", "zero_stage": 3, "config": {"bf16": {"enabled": True}}}},
    {"strategy": {"type": "deepspeed", "config": "ds.json"}},
    {"peft": {"type": "lora", "target_modules": ["q_proj"]}},
    {"peft": {"target_modules": "all-linear", "lora_r": 8}},
    {"plugins": {"block": ["liger"], "loop_hooks": {"run_step": "x"}}},
    {"type": "tiny", "skip_validation": True, "data": {"type": "sft", "sources": [{"type": "huggingface", "name_or_path": "x"}]}},
    {"type": "causal", "model": "org/model", "data": {"sources": "rows.jsonl"}},
    {"model": "org/model", "data": {"sources": ["a", {"name_or_path": "b", "weight": None}], "train_eval_split": [0.9, 0.1]}},
]  # fmt: skip

BAD = [
    {"optimizer": {"betas": [0.9]}},
    {"optimizer": {"lr": 1, "learning_rate": 1}},
    {"optimizer": {"type": "lion"}},
    {"optimizer": {"type": "torch"}},
    {"optimizer": {"eps": "small"}},
    {"scheduler": {"warmup_ratio": 2}},
    {"strategy": {"data_parallel": "fsdp"}},
    {"strategy": {"type": "deepspeed", "offload": "everything"}},
    {"strategy": {"zero_stage": 2}},
    {"checkpoint": [{"type": "fulll"}]},
    {"data": {"type": "sft"}},
    {"model": {"type": "huggingface"}},
    {"type": "sft", "data": {"sources": ["x"]}},
    {"type": "sft", "model": "x", "data": {"sources": [{"split": "train"}]}},
    {"type": "sft", "model": "x", "data": {"sources": ["x"], "overflow": "cut"}},
    {"type": "sft", "model": "x", "data": {"sources": ["x"], "text_column": "text"}},
    {"peft": {"rank": 0}},
    {"peft": {"r": 4, "rank": 4}},
    {"epochs": 0},
    {"seed": -1},
    {"allow_changes": "data"},
    {"log_interval": 1, "loss_log_interval": 1},
]


@pytest.mark.parametrize("raw", GOOD, ids=str)
def test_both_take(installed, raw):
    host, validator = installed
    raw = {"type": "tiny", **raw} if "model" not in raw else raw
    resolve(raw, host)
    validator.validate(raw)


@pytest.mark.parametrize("raw", BAD, ids=str)
def test_both_refuse(installed, raw):
    host, validator = installed
    raw = {"type": "tiny", **raw}
    with pytest.raises(RecipeError):
        resolve(raw, host)
    assert not validator.is_valid(raw)


@pytest.mark.parametrize("raw", [raw for raw, *_ in REFUSED], ids=str)
def test_what_the_reader_refuses_elsewhere(raw):
    validator = checker(host_of(Parts()))
    raw = {"type": "tiny", **raw}
    if raw == {"type": "tiny", "micro_batch_size": 2.0}:
        pytest.skip("to JSON Schema 2.0 is a whole number")
    assert not validator.is_valid(raw)


def test_descriptions_defaults_and_plugins_for_completion(installed):
    schema = installed[1].schema
    adamw = schema["$defs"]["optimizer-adamw"]
    assert adamw["properties"]["lr"]["default"] == 2e-5
    assert adamw["properties"]["lr"]["minimum"] == 0
    assert adamw["properties"]["lr"]["description"].startswith("Learning rate")
    assert adamw["properties"]["learning_rate"] == adamw["properties"]["lr"]
    assert adamw["properties"]["eps"]["default"] == 1e-8, "inherited and own fields alike"
    assert "plugin 'torch' (hooktrain-torch 0.2.0)" in adamw["description"]
    tokenizer = schema["$defs"]["tokenizer-huggingface"]["properties"]["name_or_path"]
    assert "model.name_or_path" in tokenizer["description"]
    assert schema["properties"]["on_nan"]["enum"] == ["stop", "skip"]
    assert set(schema["properties"]["type"]["enum"]) == {"sft", "causal", "preference", "dpo", "kto", "reward", "tiny"}
    assert not [name for name in schema["$defs"] if name.endswith("-given")], "which no file can hold"
    undescribed = [
        (name, key)
        for name, definition in schema["$defs"].items()
        for key, value in definition.get("properties", {}).items()
        if not value.get("description") and key not in ("type", "sources")
    ]
    assert not undescribed, "every key says what it is for"


def test_docstrings_of_fields_are_found_wherever_they_were_written():
    @attrs.frozen(kw_only=True)
    class Base:
        """A base."""

        first: int = a_field(default=1)
        """Of the base,
        on two lines, with ``code``."""
        second: str = a_field(default="a", validator=one_of("a", "b"))
        """Of the base."""

    @attrs.frozen(kw_only=True)
    class Derived(Base):
        """A class."""

        second: str = a_field(default="a")
        """Of the class."""
        third: int = a_field(default=3)

    assert dict(field_docs(Derived)) == {
        "first": "Of the base, on two lines, with `code`.",
        "second": "Of the class.",
    }
    assert dict(field_docs(attrs.make_class("NoSource", {}))) == {}


def test_the_command_prints_it(run_cli):
    shown = run_cli("schema", "-p", "no:peft")
    schema = json.loads(shown.stdout)
    assert "peft" not in schema["properties"]
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
