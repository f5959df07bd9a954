"""Trained pieces of rendered conversations, marked in the text; nothing else may be trained."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import groupby
from typing import Any

import pytest
from hooktrain_sft.chat.render import render_sft, render_text
from hooktrain_sft.chat.template_trace import CompiledTemplate
from hooktrain_sft.config import CausalDataConfig, SFTDataConfig
from hooktrain_sft.data.tokenize import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import _compile_jinja_template

from hooktrain import DataError
from tests.facts import facts

SOURCES = (object(),)


def pieces(tokenizer: Any, messages: list[Any], *, tools: Any = None, **config: Any) -> list[str]:
    """The trained runs of a conversation, decoded from their tokens; checks that the tokens are those of the text."""
    rendered = render_sft({"messages": messages, "tools": tools}, tokenizer, SFTDataConfig(sources=SOURCES, **config))
    ((ids, trained),) = Encoder(tokenizer)([rendered])
    whole = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    assert rendered.text == whole
    assert ids.tolist() == tokenizer(whole, add_special_tokens=False)["input_ids"]
    runs = [
        (key, [i for _, i in run]) for key, run in groupby(zip(trained, ids.tolist(), strict=True), key=lambda p: p[0])
    ]
    return [tokenizer.decode(run) for is_trained, run in runs if is_trained]


def chat(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """Alternating user and assistant messages."""
    turns = [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(contents)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


@pytest.mark.parametrize(
    ("template", "end", "lead"),
    [
        ("chatml", "<|im_end|>", ""),
        ("default_system", "<|im_end|>", ""),
        ("llama3", "<|eot_id|>", ""),
        ("gemma", "<end_of_turn>", ""),
        ("generation", "<|im_end|>", ""),
        ("stripping", "<|im_end|>", ""),
        ("mistral", "</s>", " "),
    ],
)
@pytest.mark.parametrize("trim_offsets", [False, True])
def test_answers_and_their_end_are_trained_and_nothing_else(
    make_tokenizer: Callable[..., Any], template: str, end: str, lead: str, trim_offsets: bool
) -> None:
    tokenizer = make_tokenizer(template, trim_offsets)
    messages = chat("Hello there!", "Yes, both.", "What is the answer?", "Nö, 42 🙂")
    assert pieces(tokenizer, messages) == [f"{lead}Yes, both.{end}", f"{lead}Nö, 42 🙂{end}"]
    assert pieces(tokenizer, messages, train_on="last_assistant") == [f"{lead}Nö, 42 🙂{end}"]


def test_smollm2(smollm2_tokenizer: Any) -> None:
    messages = chat("Hi there", "Hello!\nHow are you?", "Fine, and you? 🙂", "Très bien 🙂🙂")
    expected = ["Hello!\nHow are you?<|im_end|>", "Très bien 🙂🙂<|im_end|>"]
    assert pieces(smollm2_tokenizer, messages) == expected  # the template puts a system prompt of its own before this
    assert pieces(smollm2_tokenizer, [{"role": "system", "content": "Be brief."}, *messages]) == expected


def test_repeated_answers_do_not_train_the_users_words(make_tokenizer: Callable[..., Any]) -> None:
    messages = chat("yes", "yes", "yes", "yes", system="yes")
    assert pieces(make_tokenizer("chatml"), messages) == ["yes<|im_end|>", "yes<|im_end|>"]


def test_a_template_that_strips_white_space_does_not_train_the_prompt(make_tokenizer: Callable[..., Any]) -> None:
    messages = chat("  Hello  ", " \n yes \n\n", "x", "  no  ")
    assert pieces(make_tokenizer("stripping"), messages) == ["yes<|im_end|>", "no<|im_end|>"]


def test_white_space_that_the_template_keeps_is_trained(make_tokenizer: Callable[..., Any]) -> None:
    assert pieces(make_tokenizer("chatml"), chat("Hello", "  yes  ")) == ["  yes  <|im_end|>"]


def test_a_token_that_prompt_and_answer_share_is_not_trained(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer("chatml")
    assert tokenizer.convert_ids_to_tokens(tokenizer("\n\n")["input_ids"]) == ["ĊĊ"], (
        "the two line breaks are one token"
    )
    # the prompt's line break and the first of the answer are one token, which the model never has to write
    assert pieces(tokenizer, chat("Hello", "\n\nyes")) == ["\nyes<|im_end|>"]


@pytest.mark.parametrize("template", ["chatml", "generation"])
@pytest.mark.parametrize("nothing", ["", " \n"])
def test_an_empty_answer_is_not_trained_and_noted(
    make_tokenizer: Callable[..., Any], template: str, nothing: str
) -> None:
    tokenizer, messages = make_tokenizer(template), chat("Hello", nothing, "What?", "yes")
    assert pieces(tokenizer, messages) == ["yes<|im_end|>"]
    rendered = render_sft({"messages": messages}, tokenizer, SFTDataConfig(sources=SOURCES))
    assert rendered.notes == ("messages[1] assistant: empty, not trained",)
    assert pieces(tokenizer, chat("Hello", nothing)) == []


def test_what_follows_the_last_answer_is_not_trained(make_tokenizer: Callable[..., Any]) -> None:
    assert pieces(make_tokenizer("chatml"), chat("Hello", "yes", "What?")) == ["yes<|im_end|>"]


def test_a_template_without_end_token_trains_its_separator(make_tokenizer: Callable[..., Any]) -> None:
    # its prompt ends with a space, which is part of the token of the answer's first word
    assert pieces(make_tokenizer("plain"), chat("Hello", "yes", "What", "no")) == [" yes\n\n", " no\n\n"]


def test_everything(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer, messages = make_tokenizer("chatml"), chat("Hello", "yes")
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert pieces(tokenizer, messages, train_on="all") == pieces(tokenizer, messages, mask_inputs=False) == [whole]


def test_text_parts_are_text(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer("chatml")
    parts = [{"type": "text", "text": "yes"}, {"type": "text", "text": " or no"}]
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": parts}]
    rendered = render_sft({"messages": messages}, tokenizer, SFTDataConfig(sources=SOURCES))
    assert rendered.text == tokenizer.apply_chat_template(chat("Hello", "yes or no"), tokenize=False)


def test_tool_calls_and_grouped_results(make_tokenizer: Callable[..., Any]) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        {"role": "user", "content": "What is the answer?"},
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "yes", "tool_calls": None},
    ]
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    first, second = pieces(make_tokenizer("tools"), messages, tools=tools)
    assert first.startswith("<call>{") and first.endswith("}</call><|im_end|>") and first.count("<call>") == 2
    assert second == "yes<|im_end|>"


def test_tools_as_json_text(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer, config = make_tokenizer("tools"), SFTDataConfig(sources=SOURCES)
    example = {"messages": chat("Hello", "yes"), "tools": '[{"name": "add"}]'}
    assert '[{"name": "add"}]' in render_sft(example, tokenizer, config).text
    with pytest.raises(DataError, match=facts("tools", "JSON", "line 1 column 1")):
        render_sft({**example, "tools": "add"}, tokenizer, config)


def test_the_beginning_of_sequence_stands_once(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer("llama3")
    rendered = render_sft({"messages": chat("Hello", "yes")}, tokenizer, SFTDataConfig(sources=SOURCES))
    ((ids, _),) = Encoder(tokenizer)([rendered])
    assert ids.tolist().count(tokenizer.bos_token_id) == 1


def test_a_template_that_forgets_earlier_reasoning(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer("forgetful")
    messages = chat("Hello", "yes", "What?", "no")
    assert pieces(tokenizer, messages) == ["yes<|im_end|>", "<think>hm</think>no<|im_end|>"]
    assert pieces(tokenizer, messages, train_on="last_assistant") == ["<think>hm</think>no<|im_end|>"]


def test_an_error_about_a_template_that_proves_nothing_names_the_message(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer("counting")
    messages = chat("Hello", "yes", "What?", "no")
    with pytest.raises(
        DataError, match=r"messages\[1\]: .*prefix-stable.*'1<.* 0.*'4<.*data\.train_on: last_assistant"
    ):
        pieces(tokenizer, messages)
    assert pieces(tokenizer, messages, train_on="all")


def test_a_conversation_that_begins_with_an_answer(make_tokenizer: Callable[..., Any]) -> None:
    messages = [{"role": "assistant", "content": "Hello"}, *chat("yes", "no")]
    for template in ("chatml", "default_system", "llama3"):
        end = "<|eot_id|>" if template == "llama3" else "<|im_end|>"
        assert pieces(make_tokenizer(template), messages) == [f"Hello{end}", f"no{end}"]
    with pytest.raises(DataError, match=facts("messages[0]", "`train: false`")):
        pieces(make_tokenizer("asking"), messages[:1])


def test_a_template_that_fails_is_an_error(make_tokenizer: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match=facts("chat template", "system, user, assistant", "System role not")):
        pieces(make_tokenizer("gemma"), chat("Hello", "yes", system="x"))


def test_no_chat_template(make_tokenizer: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match=facts("tokenizer", "'messages'", "chat_template")):
        pieces(make_tokenizer(None), chat("Hello", "yes"))


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"body": "x", "id": 1}, facts("columns body, id", "'messages'", "'prompt' and 'completion'")),
        ("x", facts("given str", "'messages'", "'prompt' and 'completion'")),
        ({"messages": []}, facts("messages", "empty")),
        ({"messages": None}, facts("messages", "None (NoneType)", "list of {role, content}")),
        ({"messages": "hi"}, facts("messages", "'hi' (str)", "list of {role, content}")),
        ({"messages": ["hi"]}, facts("messages[0]", "'hi' (str)", "mapping")),
        ({"messages": [{"from": "user"}]}, facts("messages[0]", " from,", "'role'")),
        ({"messages": [{"role": "human", "content": "x"}]}, facts("messages[0].role", "'human'", "system, ")),
        ({"messages": [{"role": "user"}]}, facts("messages[0]", "user", "no content")),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": []}]},
            facts("messages[0]", "assistant", "no content"),
        ),
        ({"messages": [{"role": "user", "content": 3}]}, facts("messages[0].content", "3 (int)", "text")),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            facts("messages[0].content[0]", "image", "{type: text, text: ...}"),
        ),
        (
            {"messages": [{"role": "user", "content": "x"}], "tools": {"a": 1}},
            facts("tools", "{'a': 1} (dict)", "list", "JSON"),
        ),
    ],
)
def test_examples_that_are_no_conversations(make_tokenizer: Callable[..., Any], example: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        render_sft(example, make_tokenizer("chatml"), SFTDataConfig(sources=SOURCES))


TEXT = st.text(
    st.characters(codec="utf-8", exclude_characters="<|>", exclude_categories=("Cs", "Cc")), min_size=1, max_size=12
)


@given(contents=st.lists(TEXT, min_size=2, max_size=6))
@settings(max_examples=60, deadline=None)
def test_any_text(contents: list[str], make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = _cached(make_tokenizer)
    messages = chat(*contents)
    answers = [m["content"] + "<|im_end|>" for m in messages if m["role"] == "assistant" and m["content"].strip()]
    assert pieces(tokenizer, messages) == answers


def _cached(make: Callable[..., Any], made: list[Any] = []) -> Any:  # noqa: B006
    if not made:
        made.append(make("chatml"))
    return made[0]


def test_plain_text_gets_its_special_tokens_once(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer(None)
    for text in ("Hello there!", "<s>Hello there!", "Hello there!</s>", "<s>Hello there!</s>"):
        ((ids, trained),) = Encoder(tokenizer)(
            [render_text({"text": text}, tokenizer, CausalDataConfig(sources=SOURCES))]
        )
        assert tokenizer.decode(ids) == "<s>Hello there!</s>"
        assert trained[1:].all()


def test_plain_text_columns(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer(None)
    config = CausalDataConfig(sources=SOURCES, text_column="body", add_bos=False, add_eos=False)
    ((ids, _),) = Encoder(tokenizer)([render_text({"body": "Hello"}, tokenizer, config)])
    assert tokenizer.decode(ids) == "Hello"
    with pytest.raises(DataError, match=facts("columns text", "'body'", "`data.text_column`", "`type: sft`")):
        render_text({"text": "Hello"}, tokenizer, config)


@pytest.mark.parametrize(
    "expression",
    [
        "loop.first",
        "loop.previtem",
        "loop.cycle('a', 'b')",
        "loop._length",
        "loop.__class__",
        "message.content",
        "message.role.upper()",
        "message.nothing",
        "message.keys()|list",
        "message.items()|list",
        "message.clear()",
        "message.update(role='x')",
        "message.__class__",
        "messages.append(1)",
        "'{}'.format(message.content)",
        "message.content.format",
        "namespace(a=1).a",
    ],
)
def test_the_sandbox_allows_what_that_of_transformers_allows(expression):
    """Every attribute is checked, in the plain template and in the recording one."""
    source = "{% for message in messages %}{{ " + expression + " }};{% endfor %}"
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]

    def outcome(render):
        try:
            return re.sub("0x[0-9a-f]+", "", render())
        except Exception as error:
            return type(error), re.sub("0x[0-9a-f]+", "", str(error))

    compiled = CompiledTemplate(source)
    theirs = _compile_jinja_template(source)
    expected = outcome(lambda: theirs.render(messages=messages))
    variables = {**compiled.globals, "messages": messages}
    assert outcome(lambda: compiled.render(variables)) == expected
    assert outcome(lambda: compiled.trace(variables).text) == expected


def test_a_completion_that_begins_inside_a_token_is_counted(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer(None)
    inside = render_sft({"prompt": "Hel", "completion": "lo there!"}, tokenizer, SFTDataConfig(sources=SOURCES))
    assert [note.split(":")[0] for note in inside.notes] == ["completion"]
    for prompt, completion in (("Hello", " there!"), ("Hello ", "there!"), ("", "Hello")):
        made = render_sft({"prompt": prompt, "completion": completion}, tokenizer, SFTDataConfig(sources=SOURCES))
        assert made.notes == ()


@pytest.mark.parametrize(
    "columns",
    [
        {"seq_lengths": [2, 3]},
        {"input_ids": [1, 5, 6, 7, 8, 9], "attention_mask": [0, 1, 1, 1, 1, 1], "seq_lengths": [3, 3]},
        {"position_ids": [0, 1, 0, 1, 2]},
        {"position_ids": [2, 3, 2, 3, 4]},
        {"input_ids": [1, 5, 6, 7, 8, 9, 1], "attention_mask": [0, 1, 1, 1, 1, 1, 0], "seq_lengths": [2, 3]},
        {"input_ids": [1, 5, 6, 7, 8, 9], "attention_mask": [0, 1, 1, 1, 1, 1], "position_ids": [0, 0, 1, 0, 1, 2]},
    ],
)
def test_documents_of_a_pack_are_parted(make_tokenizer: Callable[..., Any], columns: Any) -> None:
    example = {"input_ids": [5, 6, 7, 8, 9], **columns}
    made = render_sft(example, make_tokenizer(None), SFTDataConfig(sources=SOURCES))
    assert [one.ids.tolist() for one in made.sequences if one.ids is not None] == [[5, 6], [7, 8, 9]]
    whole = render_sft(
        {"input_ids": [5, 6], "position_ids": [0, 1]}, make_tokenizer(None), SFTDataConfig(sources=SOURCES)
    )
    assert whole.sequences == () and whole.ids is not None


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"seq_lengths": [2, 2]}, facts("seq_lengths", "4", "3")),
        ({"seq_lengths": [0, 3]}, facts("seq_lengths", "3")),
        ({"position_ids": [0, 1]}, facts("position_ids", "2", "3")),
        ({"position_ids": [0, 2, 3]}, facts("position_ids[1]", "2", "0")),
    ],
)
def test_packs_whose_parts_are_not_clear(make_tokenizer: Callable[..., Any], columns: Any, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        render_sft({"input_ids": [5, 6, 7], **columns}, make_tokenizer(None), SFTDataConfig(sources=SOURCES))
