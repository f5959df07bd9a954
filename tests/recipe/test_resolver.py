"""Recipes: what is read, what is refused, and which facts the error names."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hooktrain import Recipe, RecipeError, hookimpl, load
from hooktrain.plugin.config import plugins_config
from hooktrain.recipe.resolver import resolve
from hooktrain.recipe.yaml_reader import apply_overrides, read_recipe
from hooktrain.testing import TinyPlugin, host_of, train
from tests.facts import facts
from tests.refused_recipes import REFUSED, FolderConfig, ManySources, Parts


def recipe_of(raw, *plugins):
    return resolve({"type": "tiny", **raw}, host_of(Parts(), *plugins))


def complaints(raw, *plugins):
    with pytest.raises(RecipeError) as caught:
        recipe_of(raw, *plugins)
    return caught.value.complaints


@pytest.mark.parametrize(("raw", "where", "texts"), REFUSED)
def test_what_is_wrong_is_said(raw, where, texts):
    (found,) = complaints(raw)
    assert found.where == where
    assert str(found).startswith(f"{where}: ")
    assert re.search(facts(*texts), found.message), found


def test_all_complaints_come_at_once():
    found = complaints({"seed": -1, "optimizer": {"lr": "x", "foo": 1}, "modle": {}, "data": {"rows": "many"}})
    assert [each.where for each in found] == ["modle", "data.rows", "optimizer.lr", "optimizer.foo", "seed"]


def test_nested_parts_shorthands_and_inherited_values():
    made = recipe_of(
        {
            "data": {"type": "many", "sources": [{"type": "folder", "path": "/a"}, {"type": "folder", "path": "/b"}]},
            "model": {"vocab": 23},
            "skip_validation": True,
        }
    )
    assert [source.path for source in made.data.sources] == ["/a", "/b"]
    assert made.data.vocab == 23
    assert made.as_dict()["data"]["sources"][0] == {"type": "folder", "path": "/a"}


class Sources:
    """A trainer type with a default source, so that a bare string is understood."""

    @hookimpl
    def register_trainer_types(self):
        tiny = TinyPlugin().register_trainer_types()["tiny"]
        return {"sourced": attrs.evolve(tiny, parts={**tiny.parts, "source": ("folder",), "data": ("many",)})}


def test_a_bare_string_takes_the_default_type():
    made = resolve({"type": "sourced", "data": {"sources": ["/a"]}}, host_of(Parts(), Sources()))
    assert made.data.sources == (FolderConfig(path="/a"),)
    with pytest.raises(RecipeError, match=facts("data.sources[1].path:", "given 3", "expected text")):
        resolve({"type": "sourced", "data": {"sources": ["/a", {"path": 3}]}}, host_of(Parts(), Sources()))


@pytest.mark.parametrize("value", ["rows.jsonl", ["rows.jsonl"]])
def test_a_part_that_is_given_what_belongs_into_its_list_says_where(value):
    with pytest.raises(RecipeError, match=facts("data: given", "`data: {sources: [rows.jsonl]}`")):
        resolve({"type": "sourced", "data": value}, host_of(Parts(), Sources()))


def test_a_misspelt_type_hides_no_other_error():
    with pytest.raises(RecipeError) as caught:
        resolve({"type": "tinny", "seed": -1, "optimizer": {"wd": 1}}, host_of(Parts()))
    assert [each.where for each in caught.value.complaints] == ["type", "optimizer.wd", "seed"]
    with pytest.raises(RecipeError) as caught:
        resolve({"type": "something else", "seed": -1}, host_of(Parts()))
    assert [each.where for each in caught.value.complaints] == ["type"], "nobody knows which parts were meant"


def test_a_missing_required_key_is_named():
    with pytest.raises(RecipeError, match=facts("data.sources[0].path:", "missing")):
        resolve({"type": "sourced", "data": {"sources": [{}]}}, host_of(Parts(), Sources()))


def test_numbers_that_yaml_reads_as_text_are_numbers():
    assert recipe_of(yaml.safe_load("optimizer: {learning_rate: 1e-4}")).optimizer.lr == 1e-4


def test_unsupported_parts_can_be_admitted():
    made = recipe_of({"data": {"type": "many"}, "skip_validation": True})
    assert isinstance(made.data, ManySources)
    assert made.as_dict()["skip_validation"] is True


def test_a_part_may_declare_the_trainer_types_it_is_for():
    config = attrs.make_class("ForTiny", {}, frozen=True, class_body={"trainer_types": ("tiny",)})

    class Offers:
        @hookimpl
        def register_configs(self):
            return {"data": {"other": config}}

    assert isinstance(recipe_of({"data": "other"}, Offers()).data, config)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("type: sft\nseed: 1\ntype: sft\n", ("line 3", "'type'", "twice", "line 1")),
        ("model: {a: 1, a: 2}", ("line 1", "'a'", "twice")),
        ("a: [1", ("',' or ']'",)),
        ("- a", ("list", "'type: sft'")),
        ("", ("empty",)),
        ("a: !!python/object:os.system x", ("constructor", "python/object:os.system")),
    ],
)
def test_bad_files_are_refused(tmp_path, text, named):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=facts(str(path), *named)):
        read_recipe(path)


@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("own.jsonl", b'{"text": "a"}\n{"text": "b"}\n'),
        ("own.json", b'[{"text": "a"}]'),
        ("own.csv", b"prompt,completion\na,b\n"),
        ("own.parquet", b"PAR1\xff\xfe"),
    ],
)
def test_data_in_the_place_of_a_recipe_are_named_as_such(tmp_path, name, held):
    path = tmp_path / name
    path.write_bytes(held)
    with pytest.raises(RecipeError, match=facts(f"{path}: 1 error", "data, expected a recipe", f"sources: [{path}]")):
        read_recipe(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match=facts(str(tmp_path / "nowhere.yaml"), "no such file")):
        read_recipe(tmp_path / "nowhere.yaml")


def test_overrides():
    raw = {"optimizer": {"lr": 1}, "data": {"sources": ["a", "b"]}}
    changed = apply_overrides(
        raw, ["optimizer.lr=1e-3", "model.width=4", "data.sources.1=c", "data.sources.2=d", "checkpoint=[{type: full}]"]
    )
    assert changed == {
        "optimizer": {"lr": "1e-3"},
        "model": {"width": 4},
        "data": {"sources": ["a", "c", "d"]},
        "checkpoint": [{"type": "full"}],
    }
    assert raw == {"optimizer": {"lr": 1}, "data": {"sources": ["a", "b"]}}
    for word, named in {
        "lr": ["-o lr:", "key=value"],
        "optimizer.lr.x=1": ["-o optimizer.lr.x=1:", "'optimizer.lr' is 1", "mapping", "'x'"],
        "data.sources.7=x": ["-o data.sources.7=x:", "'data.sources'", "list of 2", "'7'"],
        "seed={": ["-o seed={:", "YAML"],
    }.items():
        with pytest.raises(RecipeError, match=facts(*named)):
            apply_overrides(raw, [word])


def test_the_written_recipe_is_the_recipe(tiny_recipe):
    trainer = train({**tiny_recipe, "checkpoint": {"type": "full", "save_every_n_steps": 4}, "train_iters": 2})
    written = Path(tiny_recipe["run_dir"]) / "recipe.yaml"
    assert resolve(read_recipe(written), trainer.host, name="recipe") == trainer.recipe
    assert trainer.recipe.digest() == resolve(read_recipe(written), trainer.host).digest()


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ),
    st.sampled_from(
        ["model", "data", "optimizer", "checkpoint", "seed", "run_dir", "plugins", "console", "epochs", "type"]
    ),
)
def test_no_value_anywhere_crashes_the_reader(value, key):
    """Whatever stands in a recipe, it is taken or refused with a sentence."""
    host = host_of(Parts())
    try:
        plugins_config({key: value}, [])
        made = resolve({"type": "tiny", key: value}, host)
    except RecipeError as refused:
        assert refused.complaints
        assert all(complaint.message for complaint in refused.complaints)
    else:
        assert made.as_yaml()


# ------------------------------------------------------------------------------------------- the default trainer type


class Kind:
    """Registers the tiny trainer type under another name, as the default or not."""

    def __init__(self, name: str, default: bool) -> None:
        self.name, self.default = name, default

    @hookimpl
    def register_trainer_types(self):
        tiny = TinyPlugin().register_trainer_types()["tiny"]
        return {self.name: attrs.evolve(tiny, default=self.default)}


def without_type(*plugins: object) -> Recipe:
    return load({}, plugins=[TinyPlugin(), *plugins], switches=["no:*", "torch"])[0]


def test_a_recipe_without_a_type_is_of_the_default_one():
    assert without_type(Kind("mine", True)).type == "mine"


def test_two_default_trainer_types_are_named():
    with pytest.raises(RecipeError, match=facts("type: ", "'mine'", "'yours'", "Kind", "name one")):
        without_type(Kind("mine", True), Kind("yours", True))


def test_without_a_default_trainer_type_those_there_are_are_listed():
    with pytest.raises(RecipeError, match=facts("type: ", "given none", "mine", "tiny")):
        without_type(Kind("mine", False))
