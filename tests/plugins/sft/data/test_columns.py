"""Columns beside the conversation: used where their meaning is settled, refused, or named in the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hooktrain_hf.plugin import HFPlugin
from hooktrain_hf.source import HFSourceConfig
from hooktrain_sft.config import CausalDataConfig, SFTDataConfig
from hooktrain_sft.plugin import SFTPlugin

from hooktrain import DataError, World
from hooktrain.testing import host_of
from tests.facts import facts

ASKED = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "yes"}]
TOLD = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "yes"}]
WEATHER = {"name": "weather", "description": "tells it", "parameters": {"type": "object", "properties": {}}}
READING_DOCUMENTS = "{% for document in documents or [] %}<doc>{{ document['text'] }}</doc>{% endfor %}"


@pytest.fixture
def prepare(tmp_path: Path, make_tokenizer: Callable[..., Any]) -> Callable[..., tuple[list[str], list[str]]]:
    """Returns the texts of rows with their trained parts, and the warnings."""

    def prepared(rows: list[dict[str, Any]], template: str = "tools", **options: Any) -> tuple[list[str], list[str]]:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        made: Any = CausalDataConfig if options.pop("causal", False) else SFTDataConfig
        data_config = made(sources=(HFSourceConfig(name_or_path=str(path)),), use_data_cache=False, **options)
        tokenizer = make_tokenizer(template)
        hooks = host_of(HFPlugin(), SFTPlugin()).hooks
        data = hooks.make_data(
            config=data_config, tokenizer=tokenizer, world=World(), hooks=hooks, recipe=SimpleNamespace(model=None)
        )
        texts = [tokenizer.decode(data.train[index]["input_ids"]) for index in range(len(data.train))]
        return texts, [w.partition("rows.jsonl: ")[2] for w in data.report["warnings"] if "rows.jsonl" in w]

    return prepared


Prepare = Callable[..., tuple[list[str], list[str]]]


@pytest.mark.parametrize("name", ["system", "system_prompt"])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": ASKED},
        {"conversations": TOLD},
        {"instruction": "Hello", "output": "yes"},
        {"prompt": ASKED[:1], "completion": ASKED[1:]},
    ],
)
def test_a_system_prompt_is_the_first_turn(prepare: Prepare, name: str, row: dict[str, Any]) -> None:
    (text,), warnings = prepare([{**row, name: "Be a pirate."}])
    assert text.startswith("<|im_start|>system\nBe a pirate.<|im_end|>\n<|im_start|>user\nHello") and not warnings
    (text,), warnings = prepare([{**row, name: ""}])
    assert text.startswith("<|im_start|>user") and not warnings


def test_a_system_turn_precedes_a_system_column(prepare: Prepare) -> None:
    own = [{"role": "system", "content": "Be brief."}, *ASKED]
    (text,), warnings = prepare([{"messages": own, "system": "Be a pirate."}])
    assert "Be brief." in text and "pirate" not in text and warnings == ["columns not used: system"]
    assert prepare([{"messages": own, "system": "Be brief."}])[1] == []


def test_text_has_no_system_turn(prepare: Prepare) -> None:
    (text,), warnings = prepare([{"prompt": "Hello ", "completion": "yes", "system": "Be a pirate."}])
    assert text.startswith("Hello yes") and warnings == ["columns not used: system"]
    with pytest.raises(DataError, match=facts("tools", "completion", "data.role_mapping")):
        prepare([{"prompt": "Hello ", "completion": "yes", "tools": [WEATHER]}])
    with pytest.raises(DataError, match=facts("label is 0", "KTO")):
        prepare([{"prompt": "Hello ", "completion": "yes", "label": 0}])
    with pytest.raises(DataError, match=facts("rows.jsonl, example 0", "system is 3 (int)", "expected text")):
        prepare([{"messages": ASKED, "system": 3}])


@pytest.mark.parametrize("name", ["tool_defs", "functions"])
@pytest.mark.parametrize(
    "given", [[WEATHER], json.dumps([WEATHER]), [json.dumps(WEATHER)], [{"type": "function", "function": WEATHER}]]
)
def test_tools_under_other_names(prepare: Prepare, name: str, given: Any) -> None:
    expected = prepare([{"messages": ASKED, "tools": [{"type": "function", "function": WEATHER}]}])
    assert prepare([{"messages": ASKED, name: given}]) == expected and "weather" in expected[0][0]
    with pytest.raises(DataError, match=facts("tools", "renders none")):
        prepare([{"messages": ASKED, name: given}], "chatml")


def test_what_are_no_tools_is_named(prepare: Prepare) -> None:
    for given in ("adds numbers", [1], [{"x": 1}], {"a": 1}):
        assert prepare([{"messages": ASKED, "functions": given}])[1] == ["columns not used: functions"]
    both = {"messages": ASKED, "tools": [{"type": "function", "function": WEATHER}], "tool_defs": [{"name": "other"}]}
    assert prepare([both])[1] == ["columns not used: tool_defs"]


def test_documents_go_to_a_template_that_renders_them(prepare: Prepare, make_tokenizer: Callable[..., Any]) -> None:
    chatml = make_tokenizer("chatml").chat_template
    row = {"messages": ASKED, "documents": [{"text": "one"}, {"text": "two"}]}
    (text,), warnings = prepare([row], READING_DOCUMENTS + chatml)
    assert text.startswith("<doc>one</doc><doc>two</doc><|im_start|>user") and not warnings
    first_only = "{% if documents %}{{ documents[0]['text'] }}{% endif %}" + chatml
    for template in (chatml, first_only, "{% if false %}{{ documents }}{% endif %}" + chatml):
        assert prepare([row], template)[1] == ["columns not used: documents"]
    assert prepare([{**row, "documents": "a text"}], READING_DOCUMENTS + chatml)[1] == ["columns not used: documents"]
    assert prepare([{**row, "documents": []}], chatml)[1] == []


def test_every_column_that_nobody_reads_is_named_once(prepare: Prepare) -> None:
    rows = [{"messages": ASKED, "id": 1}, {"messages": ASKED, "id": 2, "lang": "en", "empty": None, "none": []}]
    assert prepare(rows)[1] == ["columns not used: id, lang"]
    assert prepare([{"conversations": TOLD, "source": "x"}])[1] == ["columns not used: source"]
    assert prepare([{"question": "a", "answer": "b", "system": "x", "n": 0}], **MAPPED)[1] == [
        "columns not used: system, n"
    ]
    assert prepare([{"text": "Hello", "url": "x"}])[1] == ["columns not used: url"]
    assert prepare([{"text": "Hello", "url": "x"}], causal=True)[1] == ["columns not used: url"]
    assert prepare([{"input_ids": [1, 2], "labels": [-100, 2], "attention_mask": [1, 1], "url": "x"}])[1] == [
        "columns not used: url"
    ]
    assert prepare([{"instruction": "a", "output": "b", "input": "c", "history": []}])[1] == []


MAPPED: dict[str, Any] = {"role_mapping": {"user": "question", "assistant": "answer"}}


def test_fields_of_messages_that_no_template_reads_are_named(prepare: Prepare, make_tokenizer: Any) -> None:
    named = [{**ASKED[0], "name": "Ann", "at": None}, {**ASKED[1], "id": 3}]
    assert prepare([{"messages": named}])[1] == ["columns not used: messages.name, messages.id"]
    chatml = make_tokenizer("chatml").chat_template
    reading = chatml.replace("message['content']", "(message['name'] or '') + message['content']")
    assert prepare([{"messages": named}], reading)[1] == ["columns not used: messages.id"]
    mentioning = "{% if false %}{{ messages[0]['name'] }}{% endif %}" + chatml
    assert prepare([{"messages": named}], mentioning)[1] == ["columns not used: messages.name, messages.id"]


@pytest.mark.parametrize("row", [{"messages": ASKED}, {"prompt": "a", "completion": "b"}, {"text": "Hello"}])
def test_media_are_refused(prepare: Prepare, row: dict[str, Any]) -> None:
    for name, value in (
        *(("images", ["a.png"]), ("image", "a.png"), ("video", "a.mp4"), ("audio", {"path": "a.wav", "bytes": None})),
        ("scan", {"bytes": None, "path": "a.png"}),
    ):
        with pytest.raises(DataError, match=facts("rows.jsonl, example 1", f"{name} is", "only text", "remove")):
            prepare([row, {**row, name: value}])
    texts, warnings = prepare([{**row, "images": []}, {**row, "images": None}])
    assert len(texts) == 2 and not warnings


@pytest.mark.parametrize(
    "row", [{"prompt": "a", "completion": "b"}, {"messages": ASKED}, {"instruction": "a", "output": "b"}]
)
@pytest.mark.parametrize("name", ["label", "kto_tag"])
def test_disliked_answers_are_refused(prepare: Prepare, row: dict[str, Any], name: str) -> None:
    assert prepare([{**row, name: True}, {**row, name: "true"}])[1] == []
    for value in (False, "false", "False"):
        with pytest.raises(DataError, match=facts("rows.jsonl, example 1", name, "KTO")):
            prepare([{**row, name: True}, {**row, name: value}])
    assert prepare([{**row, name: 3}])[1] == [f"columns not used: {name}"]
    assert prepare([{"text": "Hello", name: False}])[1] == [f"columns not used: {name}"]


def test_the_first_example_tells_the_format(prepare: Prepare) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b", "messages": None}]
    assert prepare(rows) == ([prepare(rows[:1])[0][0]] * 2, [])
    late = [rows[0], {**rows[0], "messages": ASKED, "input_ids": [1]}]
    assert prepare(late) == (prepare(rows)[0], ["columns not used: messages, input_ids"])
    renamed = {"q": "a", "a": "b", "sys": "Be brief.", "prompt": "other"}
    columns = {"prompt": "q", "completion": "a", "system": "sys"}
    assert prepare([renamed], columns=columns) == (prepare(rows[:1])[0], ["columns not used: system"])
    with pytest.raises(
        DataError, match=facts("rows.jsonl, example 1", "columns messages", "'prompt' and 'completion'")
    ):
        prepare([rows[0], {"messages": ASKED}], format="prompt_completion")


def test_text_is_text(prepare: Prepare) -> None:
    with pytest.raises(DataError, match=facts("rows.jsonl, example 1 (rows.jsonl, line 2): text is 5 (int)")):
        prepare([{"text": "Hello"}, {"text": 5}], causal=True)


def test_a_column_that_the_recipe_names_may_come_late(prepare: Prepare) -> None:
    rows = [{"question": "a", "answer": "b"}] * 1500 + [{"question": "a", "answer": "b", "sys": "Be brief."}]
    mapping = {"user": "question", "assistant": "answer", "system": "sys"}
    texts, _ = prepare(rows, role_mapping=mapping)
    assert texts[-1].startswith("<|im_start|>system\nBe brief.") and texts[0].startswith("<|im_start|>user")
    with pytest.raises(DataError, match=facts("data.role_mapping", "syss")):
        prepare(rows, role_mapping={**mapping, "system": "syss"})


@pytest.mark.parametrize(("unit", "documents"), [("file", 1), ("paragraph", 2), ("line", 3)])
def test_the_unit_of_text(tmp_path: Path, make_tokenizer: Callable[..., Any], unit: Any, documents: int) -> None:
    path = tmp_path / "book.txt"
    path.write_text("one\n\ntwo\nthree\n")
    hooks = host_of(HFPlugin(), SFTPlugin()).hooks
    for source, default in (({}, unit), ({"text_unit": unit}, "line")):
        config = CausalDataConfig(
            sources=(HFSourceConfig(name_or_path=str(path), **source),), text_unit=default, use_data_cache=False
        )
        tokenizer = make_tokenizer(None)
        data = hooks.make_data(
            config=config, tokenizer=tokenizer, world=World(), hooks=hooks, recipe=SimpleNamespace(model=None)
        )
        text = "".join(tokenizer.decode(data.train[index]["input_ids"]) for index in range(len(data.train)))
        assert text.count("<s>") == data.report["train"]["rows_kept"] == documents
        assert ("two\nthree" in text) == (unit != "line") and ("one\n\ntwo" in text) == (unit == "file")
