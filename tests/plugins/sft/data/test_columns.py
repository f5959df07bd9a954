"""Columns beside the conversation: used where their meaning is settled, refused, or named in the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
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
        source = HFSourceConfig(name_or_path=str(path), **options.pop("source", {}))
        data_config = made(sources=(source,), use_data_cache=False, **options)
        tokenizer = make_tokenizer(template)
        hooks = host_of(HFPlugin(), SFTPlugin()).hooks
        data = hooks.make_data(
            config=data_config, tokenizer=tokenizer, world=World(), hooks=hooks, recipe=SimpleNamespace(model=None)
        )
        texts = [tokenizer.decode(data.train[index]["input_ids"]) for index in range(len(data.train))]
        said = [w.partition("rows.jsonl: ")[2] for w in data.report["warnings"] if "rows.jsonl" in w]
        return texts, [w for w in said if "`data.format: prompt_completion`" not in w]  # see test_prepare

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
    remedy = "data.role_mapping: {system: system, user: prompt, assistant: completion}"
    assert text.startswith("Hello yes")
    assert warnings == [f"columns not used: system; to render system too, write `{remedy}`"]
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
    assert prepare([{"question": "a", "answer": "b", "system": "x", "n": 0}], **MAPPED)[1] == ["columns not used: n"]
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
    texts, (warning,) = prepare([renamed], columns=columns)
    assert texts == prepare(rows[:1])[0] and warning.startswith("columns not used: system;")
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


def text_of(rows: tuple[list[str], list[str]]) -> str:
    (text,), warnings = rows
    assert not warnings
    return text


def test_a_system_column_beside_mapped_columns_is_the_system_turn(prepare: Prepare) -> None:
    """As in OpenOrca, whose mapping names the question and the response."""
    row = {"system_prompt": "Be brief.", "question": "a", "answer": "b"}
    for more in ({}, {"system": "system_prompt"}):
        text = text_of(prepare([row], role_mapping={**MAPPED["role_mapping"], **more}))
        assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\na<|im_end|>")
    assert text_of(prepare([row], **MAPPED, columns={"system_prompt": None})).startswith("<|im_start|>user\na")


def remedy(warning: str) -> dict[str, Any]:
    """What a warning tells a recipe to write, under ``data``."""
    text = warning.partition("write `data.")[2].partition("`")[0]
    read: dict[str, Any] = yaml.safe_load(text)
    return {key: structure_mapping(value) for key, value in read.items()}


def structure_mapping(mapping: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in mapping.items()}


DOLLY = {"instruction": "Who?", "context": "Ann sings.", "response": "Ann", "category": "qa"}


def test_a_context_is_put_before_the_question_as_the_warning_says(prepare: Prepare) -> None:
    mapping = {"user": "instruction", "assistant": "response"}
    _, (warning,) = prepare([DOLLY], role_mapping=mapping)
    assert warning.startswith("columns not used: context, category; to render context too, write `data.role_mapping")
    rows = [DOLLY, {**DOLLY, "context": ""}]
    texts, (rest,) = prepare(rows, **remedy(warning))
    assert "user\nAnn sings.\nWho?<" in texts[0] and "user\nWho?<" in texts[1] and rest == "columns not used: category"
    with pytest.raises(DataError, match=facts("context is 0 (int)", "expected text")):
        prepare([{**DOLLY, "context": 0}], **remedy(warning))
    both = {"user": ("instruction", "category"), "assistant": "response"}
    assert "[context, instruction, category]" in prepare([DOLLY], role_mapping=both)[1][0]
    _, (warning,) = prepare([{"prompt": "a", "completion": "b", "context": "c", "system": "d"}])
    text = text_of(prepare([{"prompt": "a", "completion": "b", "context": "c", "system": "d"}], **remedy(warning)))
    assert text.startswith("<|im_start|>system\nd<|im_end|>\n<|im_start|>user\nc\na<|im_end|>")


@pytest.mark.parametrize(
    "row", [DOLLY, {"system_prompt": "Be brief.", "question": "Who?", "response": "Ann"}, {"query": "x", "answer": "y"}]
)
def test_the_error_about_columns_of_no_format_proposes_a_mapping_that_works(
    prepare: Prepare, row: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match="no known format") as raised:
        prepare([row])
    text = "".join(prepare([row], **remedy(str(raised.value)))[0])
    assert all(value in text for name, value in row.items() if name != "category")


@pytest.mark.parametrize("causal", [False, True])
def test_a_column_can_be_removed(prepare: Prepare, causal: bool) -> None:
    row = {"text": "Hello"} if causal else {"messages": ASKED}
    with pytest.raises(DataError, match=facts("image is", "data.columns: {image: null}")):
        prepare([{**row, "image": "a.png"}], causal=causal)
    assert prepare([{**row, "image": "a.png"}], causal=causal, columns={"image": None}) == prepare([row], causal=causal)
    if causal:
        return
    for name, value in (("image", "a.png"), ("label", False), ("tools", [WEATHER]), ("id", 3)):
        assert prepare([{**row, name: value}], "chatml", columns={name: None}) == prepare([row], "chatml")
    late = [row, {**row, "image": "a.png"}]
    assert prepare(late, columns={"image": None}) == (prepare([row])[0] * 2, [])
    both = {"messages": ASKED[:1], "prompt": "a", "completion": "b"}
    assert prepare([both], columns={"messages": None})[0] == prepare([{"prompt": "a", "completion": "b"}])[0]
    with pytest.raises(DataError, match=facts("data.columns.imag", "'image'")):
        prepare([{**row, "image": "a.png"}], columns={"imag": None})
    with pytest.raises(DataError, match=facts("data.columns.text", "'q'", "second time")):
        prepare([{"q": "a"}], columns={"prompt": "q", "text": "q"})


def test_a_source_of_plain_text_removes_and_renames_columns(prepare: Prepare) -> None:
    row = {"body": "Hello", "image": "a.png", "url": "x"}
    text, warnings = prepare([row], causal=True, source={"columns": {"text": "body", "image": None}})
    assert text == prepare([{"text": "Hello"}], causal=True)[0] and warnings == ["columns not used: url"]


def test_examples_are_chosen_by_the_values_of_columns(prepare: Prepare) -> None:
    rows = [
        {"messages": [ASKED[0], {"role": "assistant", "content": answer}], "label": label, "lang": lang}
        for answer, label, lang in (("one", True, "en"), ("two", False, "en"), ("three", True, "de"), ("four", 0, "fr"))
    ]

    def read(**only: Any) -> str:
        texts, warnings = prepare(rows, source={"only": only})
        assert warnings == ["columns not used: lang"]
        return " ".join(text.split("assistant\n")[1].removesuffix("<|im_end|>\n") for text in texts)

    with pytest.raises(DataError, match=facts("example 1", "`only: {label: true}`")):
        read()
    assert (read(label=True), read(label=True, lang="de")) == ("one three", "three")
    assert read(label=True, lang=["fr", "en"]) == "one"
    for only, told in (({"labl": True}, ["labl", "label"]), ({"lang": "xx"}, ["none of whose 4", "'xx'"])):
        with pytest.raises(DataError, match=facts("rows.jsonl", *told, "correct it")):
            read(**only)


def test_questions_with_their_answers_are_turns(prepare: Prepare) -> None:
    """As in Capybara, and with a system prompt as in XTuner."""
    expected = [*ASKED, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for question, answer in (("input", "output"), ("question", "answer"), ("human", "assistant")):
        turns = [{question: "Hello", answer: "yes"}, {question: "a", answer: "b"}]
        for value in (turns, json.dumps(turns), {question: ["Hello", "a"], answer: ["yes", "b"]}):
            assert prepare([{"conversation": value, "source": "x"}]) == (
                prepare([{"messages": expected}])[0],
                ["columns not used: source"],
            )
    system = {"conversation": [{"system": "Be brief.", "input": "Hello", "output": "yes", "weight": 1, "n": 3}]}
    assert prepare([system]) == (
        prepare([{"messages": ASKED, "system": "Be brief."}])[0],
        ["columns not used: messages.n"],
    )
    with pytest.raises(DataError, match=facts("conversation[1].output is None", "expected text")):
        prepare([{"conversation": [{"input": "a", "output": "b"}, {"input": "a", "output": None}]}])
    with pytest.raises(DataError, match=facts("entries of 'conversation'", "fields said, heard")):
        prepare([{"conversation": [{"said": "a", "heard": "b"}]}])


CALL = {"name": "weather", "arguments": {"place": "Rome", "days": None}}


def test_calls_as_json_text_are_tool_calls(prepare: Prepare) -> None:
    """As in xLAM, whose parameters are no JSON schema."""
    flat = {**WEATHER, "parameters": {"place": {"type": "str", "description": "where"}}}
    schema = {**WEATHER, "parameters": {"type": "object", "properties": flat["parameters"]}}
    call = {"role": "assistant", "tool_calls": json.dumps([{"type": "function", "function": CALL}])}
    tools = [{"type": "function", "function": schema}]
    expected = prepare([{"messages": [ASKED[0], call], "tools": tools}])
    assert "<call>" in expected[0][0] and '"days": null' in expected[0][0]
    row = {"query": "Hello", "answers": json.dumps([CALL]), "tools": json.dumps([flat])}
    assert prepare([row]) == expected
    mapping = {"user": "query", "assistant": "answers"}
    assert prepare([{**row, "tools": json.dumps(tools)}], role_mapping=mapping) == expected
    texts, (warning, *_) = prepare([row, {**row, "answers": "[]"}], on_empty="drop")
    assert len(texts) == 1 and "empty, not trained" in warning
    with pytest.raises(DataError, match=facts("example 1", "answers is 'no", "name, arguments")):
        prepare([row, {**row, "answers": "no call"}])
    told = [ASKED[0], {"role": "assistant", "content": json.dumps([CALL])}]
    assert "its text is a tool call, which is trained as text" in prepare([{"messages": told, "tools": tools}])[1][0]
    assert prepare([{"messages": told}])[1] == []


def test_system_turns_and_tools_that_are_there_twice_are_noted(prepare: Prepare) -> None:
    """As in the data for function calling of Hermes, whose system turn describes the tools."""
    system = {"role": "system", "content": f"You may call: {json.dumps([WEATHER])}"}
    row = {"messages": [system, *ASKED], "tools": [{"type": "function", "function": WEATHER}]}
    (warning,) = prepare([row, row])[1]
    assert warning.startswith("its text describes the tools") and "(2 times, first in example 0, messages[0]" in warning
    assert prepare([row], columns={"tools": None})[1] == []
    (warning,) = prepare([{"messages": [system, {"role": "system", "content": "Be brief."}, *ASKED]}])[1]
    assert warning.startswith("a second system turn") and "messages[1] system" in warning


def test_equal_names_in_json_text_are_refused(prepare: Prepare) -> None:
    messages = json.dumps(ASKED).replace('"content": "yes"', '"content": "no", "content": "yes"')
    with pytest.raises(DataError, match=facts("example 0", "messages", "two fields are named 'content'")):
        prepare([{"messages": messages}])
    call = {"function": {"name": "weather", "arguments": '{"a": 1, "a": 2}'}}
    with pytest.raises(DataError, match=facts("arguments", "two fields are named 'a'")):
        prepare([{"messages": [ASKED[0], {"role": "assistant", "tool_calls": [call]}]}])
    deep = "[" * 20_000 + "]" * 20_000
    with pytest.raises(DataError, match=facts("messages", "nested too deeply")):
        prepare([{"messages": ASKED}, {"messages": deep}])


def test_removed_reasoning_is_counted(prepare: Prepare) -> None:
    told = [ASKED[0], {"role": "assistant", "content": "yes", "reasoning_content": "hm"}]
    inline = [ASKED[0], {"role": "assistant", "content": "<think>hm</think>yes"}]
    texts, (warning,) = prepare([{"messages": m} for m in (told, inline, ASKED)], "chatml", drop_reasoning=True)
    assert len(set(texts)) == 1 and warning.startswith("its reasoning is removed") and "2 times" in warning
