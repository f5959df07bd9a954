"""Recipes of hundreds of sources: the work of a plan grows with them, counted in calls of Python's functions."""

from __future__ import annotations

import cProfile
import json
import pstats
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hooktrain_sft.data.prepare import named, prepare_data

from hooktrain import DataError, World
from hooktrain.inspection.plan import plan_of
from hooktrain.inspection.value_origins import Sources
from hooktrain.training.load import load, make_host


def calls(function: Callable[[], Any]) -> int:
    profile = cProfile.Profile()
    profile.runcall(function)
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


def test_a_plan_grows_with_its_sources(chat_recipe: dict[str, Any], write_rows: Callable[..., Path]) -> None:
    """Of prepared sources, which it looks up one by one."""

    def recipe(count: int) -> dict[str, Any]:
        rows = [str(write_rows(name=f"rows-{number}.jsonl")) for number in range(count)]
        return {**chat_recipe, "data": {"sources": rows, "pack_samples": True, "max_length": 96}}

    spent = []
    for count in (10, 20, 40):
        raw = recipe(count)
        made, host = load(raw)
        tokenizer = host.hooks.make_tokenizer(config=made.tokenizer, world=World(), recipe=made)
        prepare_data(made.data, tokenizer, World(), host.hooks)
        plan_of(make_host(), Sources(file=None, raw=raw))  # what is imported and looked up once
        spent.append(calls(lambda raw=raw: plan_of(make_host(), Sources(file=None, raw=raw))))  # type: ignore[misc]
    assert spent[2] - spent[1] <= 2.3 * (spent[1] - spent[0]), spent
    assert spent[2] - spent[1] <= 20 * 8000, "a source takes thousands of calls, and not tens of thousands"


def test_names_of_evaluation_sets_grow_with_their_number(chat_recipe: dict[str, Any], write_rows: Any) -> None:
    rows = str(write_rows())
    recipe = {**chat_recipe, "data": {**chat_recipe["data"], "eval_sources": [rows] * 200}}
    sources = load(recipe)[0].data.eval_sources
    assert [name for name, _ in named(sources)] == ["rows", *(f"rows-{number}" for number in range(2, 201))]
    assert calls(lambda: list(named(sources))) <= 3 * calls(lambda: list(named(sources[:100])))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "x": "DEEP"}]},
        {"messages": "DEEP"},
        {"input_ids": [10**30, 1], "labels": [1, 1]},
    ],
    ids=["a field", "messages", "digits"],
)
def test_an_example_that_is_nested_deeply_is_named(chat_recipe: dict[str, Any], tmp_path: Path, row: Any) -> None:
    path = tmp_path / "deep.jsonl"
    path.write_text(json.dumps(row).replace('"DEEP"', "[" * 900 + "]" * 900) + "\n")
    made, host = load({**chat_recipe, "data": {"sources": [str(path)], "max_length": 96}})
    tokenizer = host.hooks.make_tokenizer(config=made.tokenizer, world=World(), recipe=made)
    with pytest.raises(DataError, match=r"deep\.jsonl") as refused:
        prepare_data(made.data, tokenizer, World(), host.hooks)
    assert len(str(refused.value)) < 1000
