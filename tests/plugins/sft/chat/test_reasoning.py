# ruff: noqa: RUF001 - DeepSeek writes its tokens with the wide vertical line
"""Templates that render reasoning and remove that of earlier turns; exactly the rendered reasoning is trained."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hooktrain_sft.chat.render import render_sft
from hooktrain_sft.config import SFTDataConfig

from hooktrain import DataError
from tests.facts import facts
from tests.plugins.sft.masks import check, render, tokenizer_for, turns

IM = "<|im_start|> <|im_end|> <|endoftext|>"
R1 = "<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <｜User｜> <｜Assistant｜>"
HARMONY = "<|start|> <|end|> <|return|> <|call|> <|message|> <|channel|>"


def qwen3() -> Any:
    return tokenizer_for("trl:qwen3", IM, eos="<|im_end|>")


def asked(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def said(content: str, reasoning: str | None = None, name: str = "reasoning_content") -> dict[str, Any]:
    return {"role": "assistant", "content": content, name: reasoning}


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_qwen3_keeps_the_reasoning_of_the_last_turn(name: str) -> None:
    messages = [asked("Hello"), said("yes", "hm", name), asked("yes"), said("yes", "<hm> 🙂", name)]
    rendered = render(qwen3(), messages)
    check(
        rendered,
        qwen3(),
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
        "<|im_start|>user\nyes<|im_end|>\n<|im_start|>assistant\n«<think>\n<hm> 🙂\n</think>\n\nyes<|im_end|>»\n",
    )
    (note,) = rendered.notes
    assert re.match(facts("messages[1] assistant: ", "reasoning", "not trained", "`data.reasoning_turns: split`"), note)


def test_qwen3_reasoning_within_the_content() -> None:
    messages = turns("Hello", "<think>\nhm\n</think>\n\nyes", "What?", "<think>\nhum\n</think>\n\nno")
    check(
        render(qwen3(), messages),
        qwen3(),
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
        "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n«<think>\nhum\n</think>\n\nno<|im_end|>»\n",
    )


@pytest.mark.parametrize(
    ("config", "variables", "answer"),
    [
        ({}, {}, "«<think>\n\n</think>\n\nno<|im_end|>»"),
        ({"mask_empty_reasoning": True}, {}, "<think>\n\n</think>\n\n«no<|im_end|>»"),
        ({"mask_empty_reasoning": True, "train_on": "completion"}, {}, "<think>\n\n</think>\n\n«no<|im_end|>»"),
        # with thinking disabled the prompt has it already
        ({}, {"enable_thinking": False}, "<think>\n\n</think>\n\n«no<|im_end|>»"),
    ],
)
def test_qwen3_empty_reasoning(config: Any, variables: Any, answer: str) -> None:
    # the earlier turn has none in the text, so that no prompt for it ends with it
    before = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n«yes<|im_end|>»\n"
    if config.get("train_on") == "completion":
        before = before.replace("«", "").replace("»", "")
    check(
        render(qwen3(), turns("Hello", "yes", "What?", "no"), variables, config=config),
        qwen3(),
        f"{before}<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n{answer}\n",
    )


def test_everything_but_empty_reasoning() -> None:
    rendered = render(qwen3(), turns("Hello", "yes"), config={"train_on": "all", "mask_empty_reasoning": True})
    check(
        rendered,
        qwen3(),
        "«<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n»<think>\n\n</think>\n\n«yes<|im_end|>\n»",
    )


def test_an_answer_that_is_about_thinking_keeps_its_tags() -> None:
    text = "yes <think>\n\n</think>\n\n"
    tokenizer = tokenizer_for("chatml", IM)
    rendered = render(tokenizer, turns("Hello", text), config={"mask_empty_reasoning": True})
    check(
        rendered,
        tokenizer,
        f"<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n«{text}<|im_end|>»\n",
    )


def test_qwen3_reasoning_between_tool_calls_is_removed_from_earlier_turns() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        asked("Hello"),
        {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        said("two", "hum"),
        asked("Sure?"),
        said("yes", "hem"),
    ]
    # the prompts for the first two answers have the reasoning that the whole text has not: no prefix of it
    written = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    rendered = render(qwen3(), messages, config={"reasoning_turns": "all"})
    check(
        rendered,
        qwen3(),
        f"<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n«{written}<|im_end|>»\n"
        "<|im_start|>user\n<tool_response>\n2\n</tool_response><|im_end|>\n<|im_start|>assistant\n«two<|im_end|>»\n"
        "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n«<think>\nhem\n</think>\n\nyes<|im_end|>»\n",
    )
    assert rendered.rules[1] == "messages[3] assistant: after its header"


def test_a_prompt_that_opens_reasoning() -> None:
    tokenizer = tokenizer_for("trl:qwen3_5_think", IM, eos="<|im_end|>")
    messages = [asked("Hello"), said("yes", "hm"), asked("What?"), said("no", "hum")]
    check(
        render(tokenizer, messages),
        tokenizer,
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
        "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n<think>\n«hum\n</think>\n\nno<|im_end|>»\n",
    )
    check(
        render(tokenizer, turns("Hello", "yes"), config={"mask_empty_reasoning": True}),
        tokenizer,
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n«yes<|im_end|>»\n",
    )


def test_deepseek_r1_is_prompted_with_what_it_never_writes_of_history() -> None:
    tokenizer = tokenizer_for("trl:deepseek_r1_distill", R1, "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
    messages = turns("Hello", "<think>hm</think>yes", "What?", "<no", system="Be brief.")
    with pytest.raises(DataError, match=facts("messages[2] ", "reasoning", "`data.drop_reasoning: true`")):
        render_sft({"messages": messages}, tokenizer, SFTDataConfig(sources=(1,)))
    rendered = render(tokenizer, messages, config={"drop_reasoning": True})
    check(
        rendered,
        tokenizer,
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hello<｜Assistant｜>«yes<｜end▁of▁sentence｜>»"
        "<｜User｜>What?<｜Assistant｜>«<no<｜end▁of▁sentence｜>»",
    )
    assert set(rendered.rules) == {"messages[2] assistant: after its header", "messages[4] assistant: after its header"}


@pytest.mark.usefixtures("first_of_may")
def test_harmony() -> None:
    tokenizer = tokenizer_for("trl:gptoss", HARMONY, eos="<|return|>")
    messages = [asked("Hello"), said("yes", "hm"), asked("What?"), said("no", "hum")]
    rendered = render(tokenizer, messages)
    head = rendered.text[: rendered.text.index("<|start|>user")]
    assert "Current date: 2026-05-01" in head
    check(
        rendered,
        tokenizer,
        f"{head}<|start|>user<|message|>Hello<|end|><|start|>assistant<|channel|>final<|message|>yes<|end|>"
        "<|start|>user<|message|>What?<|end|><|start|>assistant"
        "«<|channel|>analysis<|message|>hum<|end|><|start|>assistant<|channel|>final<|message|>no<|return|>»",
    )


def test_reasoning_that_the_template_does_not_know() -> None:
    tokenizer = tokenizer_for("chatml", IM)
    messages = [asked("Hello"), said("yes", "hm")]
    with pytest.raises(
        DataError, match=facts("messages[1]", "reasoning", "tokenizer.chat_template", "`data.drop_reasoning: true`")
    ):
        render(tokenizer, messages)
    check(
        render(tokenizer, messages, config={"drop_reasoning": True}),
        tokenizer,
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n«yes<|im_end|>»\n",
    )


@pytest.mark.usefixtures("first_of_may")
def test_variables_of_the_template_and_of_the_example() -> None:
    tokenizer = tokenizer_for("smollm3", IM, eos="<|im_end|>")
    example = {"chat_template_kwargs": {"enable_thinking": True, "other": None}}
    quiet = render(tokenizer, turns("Hello", "yes"), {"enable_thinking": False})
    assert quiet.text.endswith("<think>\n\n</think>\nyes<|im_end|>\n") and "/no_think" in quiet.text
    config = SFTDataConfig(sources=(1,), chat_template_kwargs={"enable_thinking": False})
    assert "/think" in render_sft({"messages": turns("Hello", "yes"), **example}, tokenizer, config).text
    with pytest.raises(DataError, match=facts("chat_template_kwargs.messages:")):
        render_sft({"messages": turns("a", "b"), "chat_template_kwargs": {"messages": 1}}, tokenizer, config)
    with pytest.raises(DataError, match=facts("chat_template_kwargs", "'x' (str)", "mapping")):
        render_sft({"messages": turns("a", "b"), "chat_template_kwargs": "x"}, tokenizer, config)
