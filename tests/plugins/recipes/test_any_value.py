"""Any key of a dialect with any value is accounted for, and never ends in a traceback."""

from __future__ import annotations

import importlib

import pytest
from hooktrain_recipes.plugin import DIALECTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hooktrain import RecipeError
from hooktrain.recipe.resolver import resolve
from tests.plugins.recipes.changing import copied, put
from tests.plugins.recipes.translating import host, translated

SEEDS = {
    "arctic": {"model": {"name_or_path": "org/model"}, "data": {"sources": [{"name_or_path": "org/rows"}]}},
    "trl": {"model_name_or_path": "org/model", "dataset_name": "org/rows"},
    "axolotl": {"base_model": "org/model", "datasets": [{"path": "org/rows", "type": "alpaca"}]},
    "llamafactory": {"model_name_or_path": "org/model", "stage": "sft", "dataset": "rows", "template": "llama3"},
}
"""A recipe that each dialect takes."""
NAMED = [
    "auto",
    "none",
    "steps",
    "epoch",
    "adamw_torch",
    "cosine",
    "bf16",
    "lora",
    "linear",
    "1e-4",
    "16k",
    "x/y:z",
    "",
]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10**12), st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from(NAMED), st.text(max_size=6),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "type", "path", "0"]), inner, max_size=2), max_leaves=4
)  # fmt: skip


def rows_of(name):
    return importlib.import_module(f"hooktrain_recipes.{name}").ROWS


def check(name, changes):
    raw = copied(SEEDS[name])
    for key, value in changes:
        put(raw, key, value)
    made = translated(name, raw)
    tops = {row.key.partition(".")[0].partition("[")[0] for row in rows_of(name)}
    unknown = [entry for entry in made.unsupported if entry.reason.startswith("unknown key of") and entry.key in tops]
    assert not unknown, "a key of the table, whatever its value"
    try:
        resolve(made.recipe, host())
    except RecipeError as problem:
        assert made.unsupported or problem.complaints


FEW = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), database=None)
MANY = settings(FEW, max_examples=1500)


def changes_of(name):
    keys = sorted({row.key for row in rows_of(name)})
    return st.lists(st.tuples(st.sampled_from(keys), VALUES), max_size=5)


@pytest.mark.parametrize("name", DIALECTS)
def test_any_value_is_accounted_for(name):
    FEW(given(changes_of(name))(lambda changes: check(name, changes)))()


@pytest.mark.thorough
@pytest.mark.parametrize("name", DIALECTS)
def test_many_values_are_accounted_for(name):
    MANY(given(changes_of(name))(lambda changes: check(name, changes)))()


@pytest.mark.parametrize("value", [[None, {"a": False}], [None, []], [{}, None], [[None], {"a": [None]}]])
def test_null_keeps_its_place_in_a_list(value):
    made = translated("arctic", {**SEEDS["arctic"], "deepspeed": {"aio": value}})
    assert made.recipe["strategy"]["config"] == {"aio": value}


@pytest.mark.thorough
@pytest.mark.parametrize("name", DIALECTS)
def test_each_key_alone_with_each_kind_of_value(name):
    for key in sorted({row.key for row in rows_of(name)}):
        for value in (None, True, 0, 2.5, "word", [], ["a"], {}, {"a": 1}, [{"a": 1}], float("nan"), "\0"):
            check(name, [(key, value)])
