"""Trained parts of conversations: the recipe's choice, flags in the data, and the rule that decided."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hooktrain_sft.chat.render import render_sft
from hooktrain_sft.chat.template import ChatTemplate
from hooktrain_sft.config import SFTDataConfig
from hypothesis import given, settings
from hypothesis import strategies as st

from hooktrain import DataError
from tests.facts import facts
from tests.plugins.sft.masks import check, tokenizer_for, turns

IM = "<|im_start|> <|im_end|> <|endoftext|>"
LOOPED = (
    "{% for i in range(messages | length) %}"
    "{{ '<|im_start|>' + messages[i].role + '\n' + messages[i].content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Goes over numbers, so that no turn of the loop is known to be a message's."""


def config(**options: Any) -> SFTDataConfig:
    return SFTDataConfig(sources=(object(),), **options)


def chatml(template: str = "chatml") -> Any:
    return tokenizer_for(template, IM, eos="<|im_end|>")


def marked(*contents: str, trained: tuple[int, ...]) -> str:
    """ChatML with the answers of these numbers trained."""
    text = ""
    for index, content in enumerate(contents):
        role = "assistant" if index % 2 else "user"
        said = f"«{content}<|im_end|>»" if index in trained else f"{content}<|im_end|>"
        text += f"<|im_start|>{role}\n{said}\n"
    return text


TALK = ("Hello", "yes", "What?", "no", "Why?", "so")


@pytest.mark.parametrize(
    ("train_on", "trained"),
    [("assistant", (1, 3, 5)), ("last_assistant", (5,)), ("completion", (5,))],
)
@pytest.mark.parametrize("template", ["chatml", "generation"])
def test_choices(make_tokenizer: Callable[..., Any], train_on: str, trained: Any, template: str) -> None:
    tokenizer = make_tokenizer(template)
    rendered = render_sft({"messages": turns(*TALK)}, tokenizer, config(train_on=train_on))
    check(rendered, tokenizer, marked(*TALK, trained=trained))


def test_an_example_that_ends_with_a_question_has_no_completion() -> None:
    assert render_sft({"messages": turns("a", "b", "c")}, chatml(), config(train_on="completion")).spans == ()
    empty = render_sft({"messages": turns("a", "")}, chatml(), config(train_on="completion"))
    assert (empty.spans, empty.notes) == ((), ("messages[1] assistant: empty, not trained",))


@pytest.mark.parametrize(
    "flag", [{"train": False}, {"training": False}, {"weight": 0}, {"weight": 0.0, "train": False}]
)
@pytest.mark.parametrize("template", ["chatml", "generation"])
def test_turns_that_the_data_exclude(make_tokenizer: Callable[..., Any], flag: Any, template: str) -> None:
    tokenizer, messages = make_tokenizer(template), turns(*TALK)
    messages[3] |= flag
    messages[5] |= dict.fromkeys(flag, True)
    rendered = render_sft({"messages": messages}, tokenizer, config())
    check(rendered, tokenizer, marked(*TALK, trained=(1, 5)))
    # the last answer is the last one, trained or not
    messages[5] |= dict.fromkeys(flag, False)
    assert render_sft({"messages": messages}, tokenizer, config(train_on="last_assistant")).spans == ()


def test_turns_that_the_data_exclude_from_everything() -> None:
    messages = turns("Hello", "yes", "What?", "no")
    messages[0]["train"] = messages[3]["train"] = False  # type: ignore[assignment]
    check(
        render_sft({"messages": messages}, chatml(), config(train_on="all")),
        chatml(),
        "<|im_start|>user\nHello<|im_end|>\n«<|im_start|>assistant\nyes<|im_end|>\n<|im_start|>user\nWhat?<|im_end|>\n»"
        "<|im_start|>assistant\nno<|im_end|>\n",
    )
    example = {"messages": messages}
    tokenizer = tokenizer_for("chatml", IM + " ")
    tokenizer.chat_template = LOOPED
    with pytest.raises(DataError, match=facts("messages[0]", "`train`", "chat template")):
        render_sft(example, tokenizer, config(train_on="all"))
    check(render_sft(example, tokenizer, config()), tokenizer, marked("Hello", "yes", "What?", "no", trained=(1,)))


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (
            {"role": "assistant", "content": "x", "weight": -0.5},
            facts("messages[0].weight", "-0.5", "0 or a positive number"),
        ),
        ({"role": "assistant", "content": "x", "train": "no"}, facts("messages[0].train", "'no'", "true", "false")),
        (
            {"role": "assistant", "content": "x", "train": True, "weight": 0},
            facts("messages[0]", "train and weight"),
        ),
        (
            {"role": "user", "content": "x", "train": True},
            facts("messages[0]", "user", "train ", "`data.train_on: all`"),
        ),
    ],
)
def test_flags_without_a_clear_meaning(message: Any, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        render_sft({"messages": [message]}, chatml(), config())


def test_flags_are_not_shown_to_the_template() -> None:
    tokenizer = tokenizer_for("chatml", IM + "  ")
    tokenizer.chat_template = "{% for m in messages %}{{ m | tojson }}<|im_end|>{% endfor %}"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "train": True, "name": None}]
    rendered = render_sft({"messages": messages}, tokenizer, config())
    assert rendered.text == (
        '{"role": "user", "content": "a"}<|im_end|>{"role": "assistant", "content": "b"}<|im_end|>'
    )


def test_rules() -> None:
    example = {"messages": turns("Hello", "yes", "What?", "no")}
    prefix = (
        "messages[1] assistant: all after the generation prompt",
        "messages[3] assistant: all after the generation prompt",
    )
    assert render_sft(example, chatml(), config()).rules == prefix
    assert render_sft(example, chatml(), config(train_on="completion")).rules == ("completion",)
    assert render_sft(example, chatml(), config(train_on="all")).rules == ("all",)
    smollm3 = tokenizer_for("smollm3", IM)
    assert render_sft(example, smollm3, config()).rules[0] == "messages[1] assistant: {% generation %}"
    assert ChatTemplate.of(smollm3).uses_date and not ChatTemplate.of(chatml()).uses_date


def test_generation_markers_whose_place_is_unknown_are_not_trusted() -> None:
    """transformers counts what a macro generates from the beginning of the text, wherever the macro is used."""
    tokenizer = tokenizer_for("chatml", IM + "   ")
    tokenizer.chat_template = (
        "{% macro answer(text) %}{% generation %}{{ text + '<|im_end|>' }}{% endgeneration %}{% endmacro %}"
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% if m.role == 'assistant' %}{{ answer(m.content) + '\n' }}{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    rendered = render_sft({"messages": turns("Hello", "yes")}, tokenizer, config())
    check(rendered, tokenizer, marked("Hello", "yes", trained=(1,)))
    assert rendered.rules == ("messages[1] assistant: all after the generation prompt",)


def test_generation_markers_that_miss_an_answer() -> None:
    tokenizer = tokenizer_for("chatml", IM + "    ")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
        "{% generation %}{{ '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% endfor %}"
    )
    with pytest.raises(DataError, match=facts("messages[1]", "marks", "tokenizer.chat_template")):
        render_sft({"messages": turns("Hello", "yes")}, tokenizer, config())


def test_content_that_the_template_drops() -> None:
    tokenizer = tokenizer_for("chatml", IM + "     ")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ': ' }}{{ m.content if m.role == 'user' }}<|im_end|>{% endfor %}"
    )
    with pytest.raises(DataError, match=facts("messages[1]", "renders", "tokenizer.chat_template")):
        render_sft({"messages": turns("Hello", "yes")}, tokenizer, config())


def test_templates_of_vision_models_get_parts() -> None:
    """They go over the parts of a content, and find none in text."""
    tokenizer = tokenizer_for("trl:smolvlm", "<|im_start|> <end_of_utterance>")
    rendered = render_sft({"messages": turns("Hello", "yes")}, tokenizer, config())
    check(
        rendered,
        tokenizer,
        "<|im_start|>User: Hello<end_of_utterance>\nAssistant:« yes<end_of_utterance>»\n",
    )


@pytest.mark.parametrize(
    ("template", "first"),
    [
        ("trl:llama3", "<|begin_of_text|><|start_header_id|>assistant<|end_header_id|>\n\n«Hi<|eot_id|>»"),
        (
            "trl:qwen2_5_vl",
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>assistant\n«Hi<|im_end|>»\n",
        ),
    ],
)
def test_a_first_answer_after_text_that_precedes_all_turns(template: str, first: str) -> None:
    special = IM + " <|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|>"
    tokenizer = tokenizer_for(template, special, "<|begin_of_text|>")
    messages = [{"role": "assistant", "content": "Hi"}, *turns("Hello", "yes")]
    rendered = render_sft({"messages": messages}, tokenizer, config())
    rest = rendered.text[len(first) - 2 :]
    assert rest.count("yes") == 1
    end = "<|eot_id|>" if "llama" in template else "<|im_end|>"
    check(rendered, tokenizer, first + rest.replace(f"yes{end}", f"«yes{end}»"))


def test_the_same_message_twice() -> None:
    message, answer = {"role": "user", "content": "yes"}, {"role": "assistant", "content": "yes"}
    rendered = render_sft({"messages": [message, answer, message, answer]}, chatml(), config())
    check(rendered, chatml(), marked("yes", "yes", "yes", "yes", trained=(1, 3)))


WORDS = st.sampled_from(["yes", " yes", "\n", "<", "<think>", "é\u0301", "🙂", "no ", "assistant", "\u200b"])


@given(
    contents=st.lists(st.lists(WORDS, min_size=1, max_size=4).map("".join), min_size=1, max_size=7),
    left_out=st.sets(st.integers(0, 6)),
    train_on=st.sampled_from(["assistant", "last_assistant", "completion"]),
    template=st.sampled_from(["chatml", "trl:qwen2_5", "trl:qwen3_instruct_2507"]),
)
@settings(max_examples=150, deadline=None)
def test_any_conversation(contents: list[str], left_out: set[int], train_on: str, template: str) -> None:
    messages: list[Any] = turns(*contents)
    answers = [i for i in range(len(contents)) if i % 2]
    wanted = {
        "assistant": answers,
        "last_assistant": answers[-1:],
        "completion": answers[-1:] if len(contents) % 2 == 0 else [],
    }[train_on]
    for index in left_out & set(answers):
        messages[index]["train"] = False
    wanted = [i for i in wanted if i not in left_out and contents[i].strip()]
    tokenizer = tokenizer_for(template, IM, eos="<|im_end|>")
    rendered = render_sft({"messages": messages}, tokenizer, config(train_on=train_on))
    head = rendered.text[: rendered.text.index("<|im_start|>user")]
    expected = head + marked(*contents, trained=tuple(wanted))
    assert rendered.text == expected.replace("«", "").replace("»", "")
    assert [rendered.text[start:end] for start, end in rendered.spans] == [f"{contents[i]}<|im_end|>" for i in wanted]
