# ruff: noqa: RUF001 - DeepSeek writes its tokens with the wide vertical line
"""Tool calls and their results with templates that render them, from JSON and Arrow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hooktrain_sft.chat.render import render_sft
from hooktrain_sft.chat.tool_calls import read_tool_calls, read_tools
from hooktrain_sft.config import SFTDataConfig

from hooktrain import DataError
from tests.facts import facts
from tests.plugins.sft.masks import check, render, tokenizer_for, turns

IM = "<|im_start|> <|im_end|> <|endoftext|>"
LLAMA = "<|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> <|eom_id|> <|python_tag|>"
MISTRAL = "<s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS]"
DEEPSEEK = (
    "<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <｜User｜> <｜Assistant｜> <｜tool▁calls▁begin｜> <｜tool▁calls▁end｜>"
    " <｜tool▁call▁begin｜> <｜tool▁call▁end｜> <｜tool▁outputs▁begin｜> <｜tool▁outputs▁end｜> <｜tool▁output▁begin｜>"
    " <｜tool▁output▁end｜> <｜tool▁sep｜>"
)
GEMMA4 = "<bos> <|turn> <turn|> <|tool> <tool|> <|tool_call> <tool_call|> <|tool_response> <tool_response|>"
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}
CONFIG = SFTDataConfig(sources=(object(),))


def call(arguments: Any = None, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "add", "arguments": arguments or {"a": 1}}, **fields}


def talk(*calls: Any, content: str | None = None) -> list[dict[str, Any]]:
    """A question, tool calls, their results, an answer, and another question and answer."""
    return [
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": content, "tool_calls": list(calls)},
        *({"role": "tool", "name": "add", "content": "2", "tool_call_id": one.get("id", "x")} for one in calls),
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2"},
        {"role": "assistant", "content": "2"},
    ]


@pytest.mark.parametrize(("template", "empty"), [("trl:qwen2_5", ""), ("trl:qwen3", "<think>\n\n</think>\n\n")])
def test_qwen_puts_results_side_by_side_into_one_turn(template: str, empty: str) -> None:
    tokenizer = tokenizer_for(template, IM, eos="<|im_end|>")
    rendered = render(tokenizer, talk(call(), call({"a": "ü"})), tools=[TOOL])
    head = rendered.text[: rendered.text.index("<|im_start|>user")]
    assert json.dumps(TOOL) in head
    calls = (
        '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "add", "arguments": {"a": "ü"}}\n</tool_call>'
    )
    check(
        rendered,
        tokenizer,
        f"{head}<|im_start|>user\nAdd.<|im_end|>\n<|im_start|>assistant\n«{calls}<|im_end|>»\n"
        "<|im_start|>user\n<tool_response>\n2\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n«2<|im_end|>»\n"
        f"<|im_start|>user\n2<|im_end|>\n<|im_start|>assistant\n«{empty}2<|im_end|>»\n",
    )


def test_llama_puts_tools_into_the_first_question() -> None:
    tokenizer = tokenizer_for("trl:llama3_1", LLAMA, "<|begin_of_text|>", "<|eot_id|>")
    rendered = render(tokenizer, talk(call()), tools=[TOOL])
    head = rendered.text[: rendered.text.index("Add.<|eot_id|>")]
    assert "Today Date: 26 Jul 2024" in head and '"name": "add"' in head
    turn = "<|start_header_id|>{}<|end_header_id|>\n\n"
    check(
        rendered,
        tokenizer,
        f'{head}Add.<|eot_id|>{turn.format("assistant")}«{{"name": "add", "parameters": {{"a": 1}}}}<|eot_id|>»'
        f'{turn.format("ipython")}"2"<|eot_id|>{turn.format("assistant")}«2<|eot_id|>»'
        f"{turn.format('user')}2<|eot_id|>{turn.format('assistant')}«2<|eot_id|>»",
    )


def test_mistral_moves_system_and_tools_to_the_last_question() -> None:
    tokenizer = tokenizer_for("mistral_v3", MISTRAL, "<s>", "</s>")
    messages = [{"role": "system", "content": "Be brief."}, *talk(call(id="abcdefghi"))]
    rendered = render(tokenizer, messages, tools=[TOOL])
    check(
        rendered,
        tokenizer,
        '<s>[INST] Add.[/INST]«[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}, "id": "abcdefghi"}]</s>»'
        '[TOOL_RESULTS] {"content": 2, "call_id": "abcdefghi"}[/TOOL_RESULTS]« 2</s>»'
        f"[AVAILABLE_TOOLS] {json.dumps([TOOL])}[/AVAILABLE_TOOLS][INST] Be brief.\n\n2[/INST]« 2</s>»",
    )
    kinds = [rule.split(": ")[1] for rule in rendered.rules]
    assert kinds == ["after its header"] * 3


def test_deepseek_takes_arguments_as_text() -> None:
    tokenizer = tokenizer_for("trl:deepseekv3", DEEPSEEK, "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
    rendered = render_sft({"messages": talk(call(), content="I add.")}, tokenizer, CONFIG)
    check(
        rendered,
        tokenizer,
        "<｜begin▁of▁sentence｜><｜User｜>Add.<｜Assistant｜>«I add.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function"
        '<｜tool▁sep｜>add\n```json\n{"a": 1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>»'
        "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>2<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"
        "«2<｜end▁of▁sentence｜>»<｜User｜>2<｜Assistant｜>«2<｜end▁of▁sentence｜>»",
    )
    # without words the template asks whether the content is null, which transformers takes out of messages
    silent = render_sft({"messages": talk(call())}, tokenizer, CONFIG)
    assert "<｜Assistant｜><｜tool▁calls▁begin｜>" in silent.text
    assert silent.text[slice(*silent.spans[0])].startswith("<｜tool▁calls▁begin｜>")


def test_results_that_are_written_into_the_answers_turn_are_not_trained() -> None:
    tokenizer = tokenizer_for("trl:gemma4", GEMMA4, "<bos>")
    rendered = render(tokenizer, talk(call()), tools=[TOOL])
    trained = [rendered.text[start:end] for start, end in rendered.spans]
    assert trained == ["<|tool_call>call:add{a:1}<tool_call|><|tool_response>", "2<turn|>", "2<turn|>"]
    assert "response:add" in rendered.text


def test_completion_is_all_after_the_last_question() -> None:
    tokenizer = tokenizer_for("trl:qwen2_5", IM, eos="<|im_end|>")
    messages = talk(call())[:4]
    rendered = render(tokenizer, messages, tools=[TOOL], config={"train_on": "completion"})
    ((start, end),) = rendered.spans
    assert rendered.text[start:end].startswith("<tool_call>") and rendered.text.endswith("2<|im_end|>\n")
    assert "<tool_response>" in rendered.text[start:end] and end == len(rendered.text) - 1
    assert rendered.rules == ("completion",)
    unfinished = render(tokenizer, messages[:3], tools=[TOOL], config={"train_on": "completion"})
    ((start, end),) = unfinished.spans
    assert unfinished.text[start:end].endswith("</tool_response><|im_end|>")


@pytest.mark.parametrize(
    "arguments",
    [{"a": 1}, '{"a": 1}', {"a": 1, "b": None}, {"a": 1, "deep": None}],
    ids=["map", "text", "null", "deep"],
)
def test_arguments_in_any_form(arguments: Any) -> None:
    tokenizer = tokenizer_for("trl:qwen2_5", IM, eos="<|im_end|>")
    rendered = render_sft({"messages": talk(call(arguments)), "tools": [TOOL]}, tokenizer, CONFIG)
    assert '"arguments": {"a": 1}}' in rendered.text


def test_examples_through_arrow_are_unchanged(tmp_path: Path) -> None:
    """Arrow gives every call the arguments of all, and every message the fields of all."""
    from datasets import Dataset

    examples = [
        {"messages": talk(call({"a": 1})), "tools": [TOOL]},
        {"messages": talk(call({"b": {"c": [1, 2]}}, id="y")), "tools": [TOOL]},
        {"messages": talk(call({"b": {"d": "x"}})), "tools": [TOOL]},
    ]
    tokenizer = tokenizer_for("trl:qwen2_5", IM, eos="<|im_end|>")
    Dataset.from_list(examples).save_to_disk(str(tmp_path / "rows"))
    back = list(Dataset.load_from_disk(str(tmp_path / "rows")))
    assert back[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] != {"a": 1}
    for example, read in zip(examples, back, strict=True):
        assert render_sft(read, tokenizer, CONFIG).text == render_sft(example, tokenizer, CONFIG).text


def test_json_text_is_read_unchanged() -> None:
    assert read_tools(json.dumps([TOOL])) == read_tools([json.dumps(TOOL)]) == read_tools([TOOL]) == [TOOL]
    assert read_tools(None) is read_tools([]) is read_tools("") is read_tools("[]") is None
    given = '[{"name": "add", "arguments": {"a": null}}]'
    assert read_tool_calls(given, "calls") == [{"name": "add", "arguments": {"a": None}}]
    assert read_tool_calls([{"name": "add", "arguments": ""}], "calls") == [{"name": "add", "arguments": {}}]
    lists = [{"name": "add", "arguments": {"a": [None, {"b": None}]}}]
    assert read_tool_calls(lists, "x")[0]["arguments"] == {"a": [None, {}]}


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        ("add", facts("messages[1].tool_calls ", "JSON")),
        ({"name": "add"}, facts("messages[1].tool_calls ", "(dict)", "list")),
        (["add"], facts("messages[1].tool_calls[0] ", "'add' (str)", "function", "name")),
        ([{"function": "add"}], facts("messages[1].tool_calls[0].function ", "'add' (str)", "name", "arguments")),
        ([{"function": {"arguments": {}}}], facts("messages[1].tool_calls[0].function ", " arguments,", "'name'")),
        ([{"id": "1"}], facts("messages[1].tool_calls[0] ", " id,", "'name'")),
        ([call('"a"')], facts("messages[1].tool_calls[0].function.arguments ", "'a' (str)", "mapping")),
        ([call("{a: 1}")], facts("messages[1].tool_calls[0].function.arguments ", "JSON")),
    ],
)
def test_calls_that_are_none(calls: Any, message: str) -> None:
    messages = [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "", "tool_calls": calls}]
    with pytest.raises(DataError, match=message):
        render_sft({"messages": messages}, tokenizer_for("trl:qwen2_5", IM), CONFIG)


def test_content_that_a_template_omits_is_an_error() -> None:
    tokenizer = tokenizer_for("chatml", IM)
    with pytest.raises(DataError, match=facts("tools: given 1,", "tokenizer.chat_template")):
        render_sft({"messages": turns("Hello", "yes"), "tools": [TOOL]}, tokenizer, CONFIG)
    with pytest.raises(DataError, match=facts("messages[1].tool_calls[0]:", "tokenizer.chat_template")):
        render_sft({"messages": talk(call(), content="")}, tokenizer, CONFIG)
    with pytest.raises(DataError, match=facts("messages[0] ", "user", "tool_calls", "assistant")):
        render_sft({"messages": [{"role": "user", "content": "x", "tool_calls": [call()]}]}, tokenizer, CONFIG)
    with pytest.raises(DataError, match=facts("tools[0]", "3 (int)", "JSON schema")):
        render_sft({"messages": turns("Hello", "yes"), "tools": [3]}, tokenizer, CONFIG)
