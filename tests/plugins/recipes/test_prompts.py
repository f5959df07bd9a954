"""The plugin ``prompts``: formats of instructions and of messages that a recipe writes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from hooktrain_recipes.prompts import PromptsPlugin, PromptsSettings

from hooktrain import DataError, RecipeError
from hooktrain.cli.data import data_of
from hooktrain.recipe.resolver import resolve
from hooktrain.testing import save_llama
from hooktrain.training.load import load
from tests.facts import facts
from tests.plugins.recipes.translating import host

ASK = {
    "prompt": "{instruction} ({input})\n",
    "without_input": "{instruction}\n",
    "system": "[{system}] ",
    "default_system": "Be brief.",
    "answer": "= {output}",
}
TALK = {"fields": {"role": "who", "content": "said"}, "roles": {"narrator": "assistant"}, "without_system": True}


def convert(name: str, example: dict[str, Any], **settings: Any) -> Any:
    """The canonical example that the format of a name makes of an example."""
    plugin = PromptsPlugin()
    recipe: Any = SimpleNamespace(settings={"prompts": PromptsSettings(**settings)})
    assert plugin.unused_hooks(recipe) == []
    source = attrs.make_class("Source", {"format": attrs.field(default=name)})()
    return plugin.register_formats(source, None)[name].convert(example)


@pytest.mark.parametrize(
    ("example", "prompt"),
    [
        ({"instruction": "Add", "input": "1, 2"}, "[Be brief.] Add (1, 2)\n"),
        ({"instruction": "Add", "input": ""}, "[Be brief.] Add\n"),
        ({"instruction": "Add {x}", "system": "Long"}, "[Long] Add {x}\n"),
    ],
)
def test_instructions_are_written_as_the_recipe_says(example: dict[str, Any], prompt: str) -> None:
    made = convert("ask", {**example, "output": "3", "id": 7}, formats={"ask": ASK})
    assert made == {"prompt": prompt, "completion": "= 3", "id": 7}
    bare = convert("ask", {**example, "output": "3"}, formats={"ask": {"prompt": "{system}{instruction}"}})
    assert bare["prompt"] == (2 * example["system"] if "system" in example else "") + example["instruction"]


def test_messages_get_our_names() -> None:
    talk = [
        {"who": "system", "said": "Rules"},
        {"who": "Human", "said": "Hello", "role": "ignored"},
        {"who": "narrator", "said": "Once", "train": False},
        {"who": "stranger", "said": "?"},
    ]
    made = convert("talk", {"messages": talk, "tools": []}, conversations={"talk": TALK})
    assert made == {
        "messages": [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Once", "train": False},
            {"role": "stranger", "content": "?"},  # which the data of type sft refuses, with its place
        ],
        "tools": [],
    }
    kept = convert("talk", {"messages": talk[:1]}, conversations={"talk": {**TALK, "without_system": False}})
    assert kept["messages"] == [{"role": "system", "content": "Rules"}]
    swapped = convert("x", {"messages": [{"a": 1, "b": 2}]}, conversations={"x": {"fields": {"a": "b", "b": "a"}}})
    assert swapped["messages"] == [{"a": 2, "b": 1, "role": None}]


TEXTS = {
    "prompt": "U {prompt} A ",
    "with_system": "S {system} U {prompt} A ",
    "chosen": "{chosen}.",
    "prompt_columns": ["question", "input"],
}
TURNS = {"fields": {"role": "from", "content": "value"}, "roles": {"bot": "assistant"}, "system_column": True}


@pytest.mark.parametrize(
    ("example", "made"),
    [
        (
            {"question": "Why", "chosen": "So", "rejected": "No", "id": 1},
            {"prompt": "U Why A ", "chosen": "So.", "rejected": "No", "id": 1},
        ),
        (
            {"input": "Why", "system": "Rules", "chosen_response": "So", "rejected_response": "No"},
            {"prompt": "S Rules U Why A ", "chosen": "So.", "rejected": "No"},
        ),
        (
            {"chosen": [{"content": "Why"}, {"content": "So"}], "rejected": [{"content": "Why"}, {"content": "No"}]},
            {"prompt": "U Why A ", "chosen": "So.", "rejected": "No"},
        ),
    ],
)
def test_pairs_are_written_as_text(example: dict[str, Any], made: dict[str, Any]) -> None:
    assert convert("ask", example, pairs={"ask": TEXTS}) == made


def test_pairs_are_written_as_messages() -> None:
    ask, good, bad = ({"from": who, "value": said} for who, said in (("human", "Why"), ("bot", "So"), ("bot", "No")))
    said = [{"role": "user", "content": "Why"}]
    chosen, rejected = [{"role": "assistant", "content": "So"}], [{"role": "assistant", "content": "No"}]
    expected = {"prompt": said, "chosen": chosen, "rejected": rejected}
    for example in (
        {"prompt": [ask], "chosen": good, "rejected": bad},
        {"prompt": "Why", "chosen": "So", "rejected": "No"},
        {"chosen": [ask, good], "rejected": [ask, {**bad, "name": None}]},
    ):
        assert convert("talk", example, pairs={"talk": TURNS}) == expected
    rules = {"prompt": "Why", "chosen": "So", "rejected": "No", "system": "Rules"}
    assert convert("talk", rules, pairs={"talk": TURNS})["prompt"] == [{"role": "system", "content": "Rules"}, *said]
    joined = convert(
        "two", {"ask": "Why", "more": "now", "chosen": "So", "rejected": "No"},
        pairs={"two": {"prompt_columns": ["ask", "more"]}},
    )  # fmt: skip
    assert joined["prompt"] == [{"role": "user", "content": "Why\nnow"}]
    single = convert("talk", {"completion": [ask, good], "label": False}, pairs={"talk": TURNS})
    assert (single["prompt"], single["answers"]) == (said, [("completion", chosen, False)])
    with pytest.raises(DataError, match=facts("label", "expected true or false")):
        convert("talk", {"completion": [ask, good], "label": "good"}, pairs={"talk": TURNS})
    with pytest.raises(DataError, match=facts("prompt", "expected text or messages")):
        convert("ask", {"question": 3, "chosen": "So", "rejected": "No"}, pairs={"ask": TEXTS})


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"x": {"prompt": "{input}"}}, ["{input}", "x.prompt", "{prompt}"]),
        ({"x": {"prompts": "a"}}, ["'prompts'", "prompt_columns"]),
        ({"x": {"fields": ["a"]}}, ["x.fields", "names by name"]),
        ({"x": {"system_column": "yes"}}, ["x.system_column", "true or false"]),
    ],
)
def test_a_format_of_pairs_is_checked(pairs: Any, message: list[str]) -> None:
    with pytest.raises(ValueError, match=facts(*message)):
        PromptsSettings(pairs=pairs)


def test_an_instruction_with_its_input_right_behind_it() -> None:
    example = {"system": "Rules", "instruction": "Add", "input": "1", "output": "1", "id": 3}
    turns = [("system", "Rules"), ("user", "Add1"), ("assistant", "1")]
    expected = {"id": 3, "messages": [{"role": role, "content": content} for role, content in turns]}
    assert convert("alpaca_joined", example) == expected


@pytest.mark.parametrize(
    ("name", "example", "said"),
    [
        ("ask", {"instruction": 5, "output": "x"}, "instruction is 5"),
        ("ask", {"instruction": "x"}, "output is None"),
        ("talk", {"messages": ["Hello"]}, "messages is ['Hello']"),
        ("talk", {"messages": None}, "messages is None"),
        ("alpaca_joined", {"instruction": "x", "output": 5}, "expected texts"),
    ],
)
def test_an_example_of_another_kind_is_an_error(name: str, example: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=facts(said, "correct or remove the example")):
        convert(name, example, formats={"ask": ASK}, conversations={"talk": TALK})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"formats": {"a": {"answer": "x"}}}, facts("prompts.formats", "'a'", "prompt")),
        ({"formats": {"a": {"prompt": "{question}"}}}, facts("{question}", "a.prompt", "{instruction}")),
        ({"formats": {"a": {"prompt": "{"}}}, facts("a.prompt", "twice")),
        ({"formats": {"a": {"prompt": "{instruction!r}"}}}, facts("{instruction}", "a.prompt")),
        ({"formats": {"a": {"prompt": "x", "prefix": "y"}}}, facts("'prefix'", "without_input")),
        ({"conversations": {"a": {"field": {}}}}, facts("prompts.conversations", "'field'", "without_system")),
        ({"conversations": {"a": {"roles": {"x": 5}}}}, facts("a.roles", "names by name")),
        ({"conversations": {"a": {"without_system": "yes"}}}, facts("a.without_system", "true or false")),
    ],
)
def test_settings_that_are_wrong_say_where(settings: dict[str, Any], said: str) -> None:
    recipe = {"type": "sft", "model": "org/model", "data": {"sources": ["org/rows"]}, "prompts": settings}
    with pytest.raises(RecipeError, match=said):
        resolve(recipe, host())


def test_what_is_trained_of_both(tmp_path: Path) -> None:
    """``hooktrain data`` prepares examples of each, and shows which part of them is trained."""
    (tmp_path / "ask.jsonl").write_text(json.dumps({"question": "Add", "output": "3"}) + "\n")
    turns = [{"who": "human", "said": "Hello"}, {"who": "narrator", "said": "Once"}]
    (tmp_path / "talk.jsonl").write_text(json.dumps({"talk": turns}) + "\n")
    recipe = {
        "type": "sft",
        "run_dir": str(tmp_path / "run"),
        "model": str(save_llama(tmp_path / "model")),
        "prompts": {"formats": {"ask": ASK}, "conversations": {"talk": TALK}},
        "data": {
            "sources": [
                {"name_or_path": str(tmp_path / "ask.jsonl"), "format": "ask", "columns": {"instruction": "question"}},
                {"name_or_path": str(tmp_path / "talk.jsonl"), "format": "talk", "columns": {"messages": "talk"}},
            ],
            "max_length": 96,
            "use_data_cache": False,
        },
    }
    shown = data_of(*load(recipe), show=2)["shown"]
    trained = ["".join(text for text, is_trained, _ in each["pieces"] if is_trained) for each in shown]
    assert trained == ["= 3<|endoftext|>", "Once<|im_end|>"]
