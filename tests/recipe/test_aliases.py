"""Aliases: keys of other programs that mean the same as ours, declared by the plugin that owns the target."""

from __future__ import annotations

import json

import pytest

from hooktrain import PluginError, RecipeAlias, RecipeError, hookimpl
from hooktrain.inspection.plan import read_plan
from hooktrain.recipe.json_schema import schema_of
from hooktrain.recipe.resolver import resolve
from hooktrain.testing import TinyPlugin, host_of, train
from hooktrain.training.load import load, make_host
from tests.facts import facts

SMALL = {"model": {"name_or_path": "org/model"}, "data": {"sources": ["org/rows"]}}


@pytest.fixture(scope="module")
def host():
    return make_host()


@pytest.mark.parametrize(
    ("given", "path", "expected"),
    [
        ({"deepspeed": {"zero_optimization": {"stage": 1}}}, "strategy.config.zero_optimization.stage", 1),
        ({"deepspeed": {}}, "strategy.type", "deepspeed"),
        ({"sequence_parallel_size": 2}, "strategy.sequence_parallel", 2),
        ({"sequence_parallel_size": 2, "strategy": "deepspeed"}, "strategy.type", "deepspeed"),
        ({"model": {"name_or_path": "x", "disable_activation_checkpoint": False}}, "model.activation_checkpointing", True),
        ({"scheduler": {"name": "linear", "warmup_ratio": 0.5}}, "scheduler.type", "linear"),
        ({"scheduler": {"name": "constant_with_warmup"}}, "scheduler.type", "constant"),
        ({"optimizer": {"learning_rate": 0.5}}, "optimizer.lr", 0.5),
        ({"data": {"sources": [{"type": "huggingface_instruct", "name_or_path": "x"}]}}, "data.sources[0].type", "huggingface"),
    ],
    ids=lambda value: json.dumps(value)[:40],
)  # fmt: skip
def test_an_alias_is_our_key(host, given, path, expected):
    found = resolve({**SMALL, **given}, host).as_dict()
    for step in path.replace("[0]", ".0").split("."):
        found = found[int(step) if isinstance(found, list) else step]
    assert found == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"deepspeed": {}, "strategy": {"type": "deepspeed", "config": {}}}, facts("deepspeed", "strategy.config", "keep one")),
        ({"scheduler": {"name": "linear", "type": "cosine"}}, facts("scheduler.name", "'scheduler.type'")),
        ({"model": {"name_or_path": "x", "disable_activation_checkpoint": "maybe"}}, facts("model.activation_checkpointing", "maybe")),
        ({"scheduler": {"name": "linaer"}}, facts("scheduler.type", "did you mean 'linear'")),
    ],
)  # fmt: skip
def test_an_alias_that_is_wrong(host, given, expected):
    with pytest.raises(RecipeError, match=expected) as problem:
        resolve({**SMALL, **given}, host)
    assert len([each for each in problem.value.complaints if not each.where.startswith("tokenizer")]) == 1


def test_plan_shows_our_key(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps({**SMALL, "sequence_parallel_size": 2, "scheduler": {"name": "linear"}}))
    facts_of = read_plan(path, estimates=False)
    assert facts_of["recipe"]["strategy"]["sequence_parallel"] == 2
    assert facts_of["origins"]["strategy.sequence_parallel"] == "r.yaml"
    path.write_text(json.dumps({**SMALL, "deepspeed": {}, "strategy": {"config": {}}}))
    complaints = read_plan(path, estimates=False)["complaints"]
    assert any("means the same" in each["message"] for each in complaints)


def test_the_schema_takes_aliases(host):
    jsonschema = pytest.importorskip("jsonschema")
    schema = schema_of(host)
    recipe = {
        **SMALL,
        "code": "mine.py",
        "type": "sft",
        "deepspeed": {"zero_optimization": {"stage": 3}},
        "scheduler": {"name": "linear"},
        "data": {"sources": [{"type": "huggingface_instruct", "name_or_path": "x"}]},
    }
    recipe["model"]["disable_activation_checkpoint"] = True
    jsonschema.validate(recipe, schema)


class Other:
    @hookimpl
    def register_recipe_aliases(self):
        return [RecipeAlias(key="width", to="model.width", values={"wide": 9})]


def test_a_plugin_s_own_alias():
    with_tiny = make_host()
    with_tiny.register(TinyPlugin())
    with_tiny.register(Other())
    recipe = resolve({"type": "tiny", "width": "wide"}, with_tiny)
    assert recipe.as_dict()["model"]["width"] == 9


def test_something_else_is_an_error():
    class Wrong:
        @hookimpl
        def register_recipe_aliases(self):
            return ["width"]

    with pytest.raises(PluginError, match=facts("register_recipe_aliases", "'width'", "RecipeAlias")):
        resolve({"type": "tiny"}, host_of(Wrong()))


PLUGIN = """
from hooktrain import hookimpl

@hookimpl
def on_train_start(trainer):
    print("from the file")
"""


def test_code_loads_a_file_s_plugins(tiny_recipe, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_code.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    train({**tiny_recipe, "code": "my_code.py"})
    assert "from the file" in capsys.readouterr().out
    made, _ = load({**tiny_recipe, "code": "my_code.py"}, plugins=[TinyPlugin()])
    assert "my_code.py" in made.as_dict()["plugins"]["load"]


def test_code_that_is_not_there_is_an_error(tiny_recipe):
    with pytest.raises(PluginError, match=facts("no_such.py", "no such file")):
        load({**tiny_recipe, "code": "no_such.py"}, plugins=[TinyPlugin()])
    with pytest.raises(RecipeError, match=facts("code", "3", "a Python file")):
        load({**tiny_recipe, "code": 3}, plugins=[TinyPlugin()])
