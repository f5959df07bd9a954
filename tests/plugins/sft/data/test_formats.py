"""Formats of examples: recognition, conversion, and errors about examples that fit none."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hooktrain_hf.source import HFSourceConfig
from hooktrain_sft.chat.messages import read_messages
from hooktrain_sft.chat.render import Rendered, render_sft
from hooktrain_sft.config import SFTDataConfig, SourceOptions
from hooktrain_sft.data.converters import known_formats, own_formats
from hooktrain_sft.data.formats import Format, choose_format
from hooktrain_sft.data.role_mapping import KNOWN_DATA_SETS
from hooktrain_sft.plugin import SFTPlugin

from hooktrain import Complaint, DataError, PluginError, PluginHost, hookimpl, structure
from tests.facts import facts
from tests.plugins.sft.masks import check, tokenizer_for

IM = "<|im_start|> <|im_end|> <|endoftext|>"
HERE = SourceOptions(name_or_path="rows.jsonl")


def config(**options: Any) -> SFTDataConfig:
    return SFTDataConfig(sources=(object(),), **options)


def chosen(example: Any, source: Any = HERE, **options: Any) -> Format:
    return choose_format(list(example), example, source, config(**options), own_formats(source, config(**options)))


def said(example: Any, source: Any = HERE, **options: Any) -> list[tuple[str, str]]:
    """Role and content of each message of a converted example."""
    made = chosen(example, source, **options).convert(example)
    assert set(example) - set(options.get("columns", {}).values()) <= set(made) | {"input_ids"}
    return [(message["role"], message["content"]) for message in made["messages"]]


ASKED = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "yes"}]
TOLD = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "yes"}]


@pytest.mark.parametrize(
    ("example", "name", "why"),
    [
        ({"messages": ASKED, "prompt": "x", "text": "x"}, "messages", ["'messages'", "'role'"]),
        ({"messages": [], "id": 1}, "messages", ["'messages'"]),
        ({"messages": TOLD}, "sharegpt", ["'messages'", "'from'"]),
        ({"conversations": TOLD, "source": "x"}, "sharegpt", ["'conversations'", "'from'"]),
        ({"conversations": None}, "sharegpt", ["'conversations'"]),
        ({"conversations": ASKED}, "messages", ["'conversations'", "'role'"]),
        ({"conversation": ASKED}, "messages", ["'conversation'", "'role'"]),
        ({"prompt": "a", "completion": "b"}, "prompt_completion", ["'prompt'", "'completion'"]),
        ({"instruction": "a", "input": "", "output": "b", "text": "x"}, "alpaca", ["'instruction'", "'output'"]),
        ({"text": "a", "id": 3}, "text", ["'text'"]),
        ({"input_ids": [1], "attention_mask": [1], "messages": ASKED}, "input_ids", ["'input_ids'"]),
    ],
)
def test_the_format_is_recognised_by_columns(example: Any, name: str, why: str) -> None:
    made = chosen(example)
    assert made.name == name
    assert re.search(facts(name, *why), made.why)


def test_the_recipe_or_the_source_sets_the_format() -> None:
    example = {"messages": ASKED, "prompt": "a", "completion": "b", "text": "x", "input_ids": [1]}
    for name in ("messages", "prompt_completion", "text", "input_ids"):
        assert re.search(facts(name, "recipe"), chosen(example, format=name).why)
    assert chosen(example, SourceOptions(format="text"), format="messages").name == "text"
    assert chosen({"anything": 1}, format="raw").convert({"anything": 1}) == {"anything": 1}
    assert chosen({"q": 1}, format="raw", columns={"n": "q"}).convert({"q": 1}) == {"n": 1}


def test_the_chosen_format_is_rendered() -> None:
    example = {"messages": ASKED, "prompt": "a", "completion": "b", "text": "x", "input_ids": [1], "labels": [1]}
    tokenizer = tokenizer_for("chatml", IM)
    texts = {name: rendered(example, tokenizer, format=name).text for name in ("messages", "prompt_completion", "text")}
    assert texts["messages"].startswith("<|im_start|>user\nHello")
    assert (texts["prompt_completion"], texts["text"]) == ("ab", "x")


def rendered(example: Any, tokenizer: Any, **options: Any) -> Rendered:
    return render_sft(chosen(example, **options).convert(example), tokenizer, config(**options))


def test_sharegpt() -> None:
    example = {
        "system": "Be brief.",
        "conversations": [
            *TOLD,
            {"from": "human", "value": "Add.", "weight": None},
            {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
            {"from": "observation", "value": "2"},
            {"from": "gpt", "value": "2", "weight": 0},
        ],
    }
    messages = chosen(example).convert(example)["messages"]
    assert [message["role"] for message in messages] == [
        *("system", "user", "assistant", "user", "assistant", "tool", "assistant"),
    ]
    assert messages[4]["tool_calls"] == [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
    text = rendered(example, tokenizer_for("trl:qwen2_5", IM, eos="<|im_end|>"))
    assert text.text.startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert [rule.split(":")[0] for rule in text.rules] == ["messages[2] assistant", "messages[4] assistant"]
    own = {"system": "x", "conversations": [{"from": "system", "value": "own"}, *TOLD]}
    assert said(own)[0] == ("system", "own")


PARTS = {"role": ["user", "assistant"], "content": ["Hello", "yes"], "name": None}


@pytest.mark.parametrize(
    "example",
    [
        {"messages": json.dumps(ASKED)},
        {"messages": [json.dumps(turn) for turn in ASKED]},
        {"messages": PARTS},
        {"conversations": json.dumps(TOLD)},
        {"conversations": {"from": ["human", "gpt"], "value": ["Hello", "yes"]}},
        {"conversation": json.dumps(PARTS)},
        {"messages": [{"role": "human", "content": "Hello"}, {"role": "ai", "content": "yes"}]},
        {"messages": [{"role": "Human", "content": "Hello"}, {"role": "GPT", "content": "yes"}]},
        {"messages": [{"role": "User", "content": "Hello"}, {"role": " model ", "content": "yes"}]},
        {"messages": [ASKED[0], {"from": "bot", "value": "yes"}]},
        {"conversations": [{"from": "Human", "value": "Hello"}, {"from": "ChatGPT", "value": "yes"}]},
    ],
)
def test_messages_in_other_forms(example: Any) -> None:
    assert said(example) == [("user", "Hello"), ("assistant", "yes")]


def test_prompt_and_completion_in_other_forms() -> None:
    human = [{"role": "human", "content": "Hello"}]
    for prompt, completion in ((human, [ASKED[1]]), (json.dumps(human), json.dumps([ASKED[1]]))):
        made = chosen({"prompt": prompt, "completion": completion}).convert(
            {"prompt": prompt, "completion": completion}
        )
        assert made == {"prompt": [ASKED[0]], "completion": [ASKED[1]]}
    for text in ('[{"a": 1}]', "[1]", "{", "yes"):
        example = {"prompt": "Hello", "completion": text}
        assert chosen(example).convert(example) == example, "JSON that is no message is text"


def test_null_in_the_arguments_of_calls_in_json_text_is_kept() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": None}}}
    example = {"messages": json.dumps([ASKED[0], {"role": "assistant", "tool_calls": [call]}])}
    (read,) = read_messages(chosen(example).convert(example)["messages"]).messages[1]["tool_calls"]
    assert read == call


def test_alpaca() -> None:
    assert said({"instruction": "Add.", "input": "1 2", "output": "3"}) == [("user", "Add.\n1 2"), ("assistant", "3")]
    example = {"instruction": "And?", "input": None, "output": "4", "system": "Count.", "history": [["Add.", "3"]]}
    assert said(example) == [
        *(("system", "Count."), ("user", "Add."), ("assistant", "3"), ("user", "And?"), ("assistant", "4"))
    ]


def test_columns_are_renamed() -> None:
    example = {"question": "a", "answer": "b", "prompt": "other", "id": 1}
    made = chosen(example, columns={"prompt": "question", "completion": "answer"})
    assert re.search("question.*prompt.*answer.*completion", made.why)
    assert made.convert(example) == {"prompt": "a", "completion": "b", "id": 1}
    with pytest.raises(DataError, match=facts("data.columns.prompt", "'querstion'", "'question'")):
        chosen(example, columns={"prompt": "querstion"})


def test_role_mapping_of_columns() -> None:
    example = {"answer": "42", "sys": "", "question": "Why?"}
    mapping = {"assistant": "answer", "user": "question", "system": "sys"}
    assert said(example, role_mapping=mapping) == [("user", "Why?"), ("assistant", "42")]
    assert said({**example, "sys": "Be brief."}, role_mapping=mapping)[0] == ("system", "Be brief.")
    used = {"assistant": "answer", "tool": "sys", "user": "question"}
    assert [role for role, _ in said(example, role_mapping=used)] == ["user", "tool", "assistant"]
    assert re.search(facts("role_mapping", "recipe"), chosen(example, role_mapping=mapping).why)


def test_role_mapping_keeps_the_order_of_the_example() -> None:
    """ArcticTraining zips the roles, which reorders and cuts turns."""
    turns = [("human", "a"), ("gpt", "b"), ("gpt", "c"), ("tool", "d"), ("human", "e")]
    example = {"talk": [{"from": speaker, "body": text} for speaker, text in turns], "id": 1}
    mapping = {"user": "talk.from.human", "assistant": "talk.from.gpt", "tool": "talk.from.tool"}
    expected = [("user", "a"), ("assistant", "b"), ("assistant", "c"), ("tool", "d"), ("user", "e")]
    assert said(example, role_mapping=mapping, content_key="body") == expected
    source = SourceOptions(role_mapping=mapping, content_key="body")
    assert said(example, source) == expected


@pytest.mark.parametrize(
    ("example", "mapping", "complaint"),
    [
        ({"q": "a", "a": None}, {"user": "q", "assistant": "a"}, facts("a ", "None (NoneType)", "data.role_mapping")),
        ({"q": "a", "a": 42.0}, {"user": "q", "assistant": "a"}, facts("a ", "42.0 (float)", "text")),
        ({"t": "x"}, {"user": "t.from.human"}, facts("t ", "'x' (str)", "list", "data.role_mapping")),
        ({"t": ["x"]}, {"user": "t.from.human"}, facts("t[0]", "'x' (str)", "mapping", "data.role_mapping")),
        (
            {"t": [{"from": "bot", "value": "x"}]},
            {"user": "t.from.human"},
            facts("t[0]", "from 'bot'", "`tool: t.from.bot`"),
        ),
        (
            {"t": [{"from": "human", "said": "x"}]},
            {"user": "t.from.human"},
            facts("t[0]", "from, said", "data.content_key"),
        ),
    ],
)
def test_examples_that_a_role_mapping_does_not_fit(example: Any, mapping: Any, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        said(example, role_mapping=mapping)


def test_role_mappings_that_fit_nothing() -> None:
    with pytest.raises(DataError, match=facts("data.role_mapping", "answer", " q;")):
        chosen({"q": 1}, role_mapping={"user": "q", "assistant": "answer"})
    with pytest.raises(DataError, match=facts("data.role_mapping", "`data.format: text`")):
        chosen({"q": 1}, role_mapping={"user": "q"}, format="text")
    with pytest.raises(DataError, match=facts("role_mapping", "'asistant'", "'assistant'")):
        chosen({"q": 1}, SourceOptions(role_mapping={"asistant": "q"}))
    for given, told in (("a.b", "a.b"), ([], ""), (["a", "b.c.d"], "b.c.d")):
        complaints: list[Complaint] = []
        assert structure(SFTDataConfig, {"sources": ["x"], "role_mapping": {"user": given}}, "data", complaints) is None
        assert re.search(facts("data.role_mapping", f"'{told}'", "user", "column.field.value"), str(complaints[0]))


HUB = {
    "nvidia/AceMath-Instruct-Training-Data:train[:10]": {"messages": [ASKED[0]], "answer": "yes"},
    "HuggingFaceH4/ultrachat_200k": {"prompt": "Hello", "messages": ASKED, "prompt_id": "x"},
    "databricks/databricks-dolly-15k": {"instruction": "Hello", "context": "", "response": "yes", "category": "x"},
    "Open-Orca/OpenOrca": {"id": 1, "system_prompt": "", "question": "Hello", "response": "yes"},
    "THUDM/LongAlign-10k": {"messages": ASKED, "length": 3},
    "Yukang/LongAlpaca-12k": {"instruction": "Hello", "output": "yes", "input": "", "file": ""},
    "Open-Orca/SlimOrca": {"conversations": [{**turn, "weight": None} for turn in TOLD]},
    "meta-math/MetaMathQA": {"type": "x", "query": "Hello", "original_question": "y", "response": "yes"},
    "ise-uiuc/Magicoder-OSS-Instruct-75K": {"lang": "x", "problem": "Hello", "solution": "yes", "seed": "s"},
    "lmsys/lmsys-chat-1m": {"conversation": ASKED, "model": "x", "language": "English"},
}


@pytest.mark.parametrize("name", HUB)
def test_data_sets_that_need_no_mapping(name: str) -> None:
    assert said(HUB[name], SourceOptions(name_or_path=name)) == [("user", "Hello"), ("assistant", "yes")]


def test_known_mappings_are_needed() -> None:
    for name in KNOWN_DATA_SETS:
        source = SourceOptions(name_or_path=name)
        assert (
            chosen(HUB.get(name, HUB["nvidia/AceMath-Instruct-Training-Data:train[:10]"]), source).name
            == "role_mapping"
        )


def test_a_source_takes_a_format_of_its_own() -> None:
    complaints: list[Complaint] = []
    given = {"name_or_path": "x.jsonl", "format": "alpaca", "columns": {"output": "response"}, "content_key": "text"}
    source = structure(HFSourceConfig, given, "data.sources[0]", complaints)
    assert not complaints
    example = {"instruction": "a", "response": "b"}
    assert re.search("alpaca.*recipe.*response.*output", chosen(example, source).why)


@pytest.mark.parametrize(
    ("example", "options", "complaint"),
    [
        (
            {"question": "a", "answer": "b"},
            {},
            facts("question, answer", "`data.role_mapping: {user: question, assistant: answer}`", "data-and-masks`"),
        ),
        ({"ask": "a", "say": "b", "id": 3}, {}, facts("`data.role_mapping: {user: ask, assistant: say}`")),
        ({"body": "a"}, {}, facts("`data.columns: {text: body}`")),
        ({"talk": ASKED}, {}, facts("`data.columns: {messages: talk}`")),
        ({"id": 3}, {}, facts("`data.columns: {ours: theirs}`")),
        (
            {"messages": [{"text": "Hello, you", "who": "me"}, {"text": "Hi", "who": "you"}]},
            {},
            facts("text, who", "{user: messages.who.me, assistant: messages.who.you}", "`data.content_key: text`"),
        ),
        ({"chosen": ASKED, "rejected": ASKED}, {}, facts("chosen, rejected", "`data.columns: {messages: chosen}`")),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            {},
            "`type: preference`.*" + re.escape("`data.columns: {completion: chosen}`"),
        ),
        ({"prompt": ASKED[:1], "chosen": ASKED[1:]}, {}, facts("`data.columns: {completion: chosen}`")),
        ({"prompt": "a", "chosen": ASKED, "rejected": ASKED}, {}, facts("`data.columns: {messages: chosen}`")),
        ({"chosen": "a b", "rejected": "a c"}, {}, facts("`data.columns: {text: chosen}`")),
        ({"text": "a"}, {"format": "alpca"}, facts("data.format", "'alpca'", "auto", "'alpaca'")),
        (
            {"text": "a"},
            {"format": "alpaca"},
            facts("data.format", "'alpaca'", "'instruction' and 'output'", " text;", "data.columns"),
        ),
        ({"text": "a"}, {"format": "role_mapping"}, facts("data.format", "'role_mapping'", "`data.role_mapping`")),
    ],
)
def test_examples_of_no_known_format(example: Any, options: Any, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint) as raised:
        chosen(example, **options)
    assert len(str(raised.value)) < 330


@pytest.mark.parametrize(
    ("example", "complaint"),
    [
        (
            {"conversations": [{"from": "narrator", "value": "x"}]},
            facts("conversations[0].from", "'narrator'", "role_mapping"),
        ),
        (
            {"conversations": [TOLD[0], {"value": "x", "from": None}]},
            facts("conversations[1]", "mapping", "from"),
        ),
        (
            {"conversations": [{"from": "function_call", "value": "add"}]},
            facts("conversations[0].value", "function_call", "JSON"),
        ),
        (
            {"messages": [{"role": "narrator", "content": "x"}]},
            facts("messages[0].role", "'narrator'", "data.role_mapping: {user: messages.role.NAME"),
        ),
        ({"messages": '[{"role": "user"'}, facts("messages", "JSON")),
        ({"messages": "Hello"}, facts("messages", "'Hello' (str)", "list")),
        ({"messages": {"role": ["user", "assistant"], "content": ["x"]}}, facts("messages", "2 role", "1 content")),
        ({"instruction": "a", "output": None}, facts("output", "None")),
        ({"instruction": "a", "output": "b", "input": 3}, facts("input", "3 (int)")),
        ({"instruction": "a", "output": "b", "history": ["x"]}, facts("history[0]", "'x' (str)")),
    ],
)
def test_examples_that_their_format_does_not_fit(example: Any, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        chosen(example).convert(example)


@pytest.mark.parametrize(
    ("prompt", "completion", "told"),
    [
        ("b", None, facts("completion is None")),
        (None, "b", facts("prompt is None")),
        ("b", 3.5, facts("completion is 3.5 (float)")),
        ("b", [ASKED[1]], facts("prompt is 'b' (str)", "completion a list")),
        ([ASKED[0]], "b", facts("completion is 'b' (str)", "prompt a list")),
    ],
)
def test_the_field_that_is_wrong_is_named(prompt: Any, completion: Any, told: str) -> None:
    with pytest.raises(DataError, match=told) as raised:
        rendered({"prompt": prompt, "completion": completion}, tokenizer_for("chatml", IM))
    assert str(raised.value).startswith(re.search(r"\w+ is", str(raised.value))[0])  # type: ignore[index]


class QuestionAnswer:
    """A plugin that registers a format."""

    @hookimpl
    def register_formats(self, source: Any, config: Any) -> dict[str, Format]:
        def recognise(columns: Any, example: Any) -> str | None:
            return "the columns 'q' and 'a'" if {"q", "a"} <= set(columns) else None

        def convert(example: Any) -> dict[str, Any]:
            asked = [{"role": "user", "content": example["q"]}, {"role": "assistant", "content": example["a"]}]
            return {**example, "messages": asked}

        return {"qa": Format("qa", "'q' and 'a'", recognise, convert)}


def test_a_plugin_brings_a_format() -> None:
    host = PluginHost(discover=False)
    host.register(SFTPlugin(), "sft")
    host.register(QuestionAnswer(), "qa")
    example = {"q": "Hello", "a": "yes", "text": "other"}
    made = choose_format(list(example), example, HERE, config(), known_formats(HERE, config(), host.hooks))
    assert re.search(facts("qa", "the columns 'q' and 'a'"), made.why)
    check(
        render_sft(made.convert(example), tokenizer_for("chatml", IM), config()),
        tokenizer_for("chatml", IM),
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n«yes<|im_end|>»\n",
    )
    host.register(QuestionAnswer(), "qa-again")
    with pytest.raises(PluginError, match=facts("register_formats", "'qa'", "plugins.block")):
        choose_format(list(example), example, HERE, config(), known_formats(HERE, config(), host.hooks))


@pytest.mark.parametrize(
    ("row", "advice"),
    [
        (
            {"system": "s", "question": "q", "chosen": "a", "rejected": "b"},
            {"role_mapping": {"system": "system", "user": "question", "assistant": "chosen"}},
        ),
        ({"input": "q", "chosen": "a", "rejected": "b"}, {"role_mapping": {"user": "input", "assistant": "chosen"}}),
    ],
)
def test_advice_for_preferences_trains_the_answer_after_its_question(row: Any, advice: Any) -> None:
    """Following it literally: every turn is there, and in its role."""
    with pytest.raises(DataError) as caught:
        chosen(row)
    roles = advice["role_mapping"]
    written = ", ".join(f"{role}: {column}" for role, column in roles.items())
    assert f"`data.role_mapping: {{{written}}}`" in str(caught.value)
    messages = chosen(row, **advice).convert(row)["messages"]
    assert [(turn["role"], turn["content"]) for turn in messages] == [(role, row[name]) for role, name in roles.items()]
