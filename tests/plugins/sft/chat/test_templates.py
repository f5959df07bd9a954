# ruff: noqa: RUF001 - DeepSeek writes its tokens with the wide vertical line
"""The chat templates that people use: each mask against one written by hand, character by character and token by token.

Expected texts are put together from what the model cards say, not from a template; what is trained stands in «».
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import pytest

from hooktrain import DataError
from tests.facts import facts
from tests.plugins.sft.masks import check, render, tokenizer_for, turns


class Shape(NamedTuple):
    """How a family writes a conversation: a system turn, a question, what an answer is prompted with, and its end."""

    template: str
    special: str
    system: str | None
    user: str
    prompt: str
    end: str
    after: str = ""
    bos: str = ""
    eos: str = ""
    strips: bool = False
    finish: str = ""


IM = "<|im_start|> <|im_end|> <|endoftext|>"
HEADER = "<|start_header_id|>"
CHATML = ("<|im_start|>system\n{}<|im_end|>\n", "<|im_start|>user\n{}<|im_end|>\n", "<|im_start|>assistant\n")
LLAMA = "<|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> <|eom_id|> <|python_tag|>"
LLAMA_TURNS = (
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "<|eot_id|>",
)
LLAMA_SYSTEM = (
    "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
    "{}<|eot_id|>"
)
TURNS = "<start_of_turn> <end_of_turn> <bos> <eos>"
GEMMA = ("<start_of_turn>user\n{}<end_of_turn>\n", "<start_of_turn>model\n", "<end_of_turn>", "\n")
PHI3 = ("<|system|>\n{}<|end|>\n", "<|user|>\n{}<|end|>\n", "<|assistant|>\n", "<|end|>", "\n")
DEEPSEEK = "<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <｜User｜> <｜Assistant｜>"
SMOLLM3_HEAD = (
    "<|im_start|>system\n## Metadata\n\nToday Date: 01 May 2026\nReasoning Mode: /think\n\n## Custom Instructions\n\n"
    "{}\n\n<|im_end|>\n"
)

SHAPES = {
    "chatml": Shape("chatml", IM, *CHATML, "<|im_end|>", "\n"),
    "qwen2.5": Shape("trl:qwen2_5", IM, *CHATML, "<|im_end|>", "\n", eos="<|im_end|>"),
    "qwen3-instruct-2507": Shape("trl:qwen3_instruct_2507", IM, *CHATML, "<|im_end|>", "\n", eos="<|im_end|>"),
    "phi4": Shape(
        "phi4",
        IM + " <|im_sep|>",
        "<|im_start|>system<|im_sep|>{}<|im_end|>",
        "<|im_start|>user<|im_sep|>{}<|im_end|>",
        "<|im_start|>assistant<|im_sep|>",
        "<|im_end|>",
    ),
    "phi3": Shape(
        "trl:phi3",
        "<|endoftext|> <|end|> <|system|> <|user|> <|assistant|>",
        *PHI3,
        eos="<|endoftext|>",
        finish="<|endoftext|>",
    ),
    "phi3.5": Shape(
        "trl:phi3_5",
        "<|endoftext|> <|end|> <|system|> <|user|> <|assistant|>",
        *PHI3,
        eos="<|endoftext|>",
        finish="<|endoftext|>",
    ),
    "llama3": Shape(
        "trl:llama3",
        LLAMA,
        "<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
        *LLAMA_TURNS,
        bos="<|begin_of_text|>",
        strips=True,
    ),
    "llama3.1": Shape("trl:llama3_1", LLAMA, LLAMA_SYSTEM, *LLAMA_TURNS, bos="<|begin_of_text|>", strips=True),
    "llama3.2": Shape("trl:llama3_2", LLAMA, LLAMA_SYSTEM, *LLAMA_TURNS, bos="<|begin_of_text|>", strips=True),
    "gemma2": Shape("trl:gemma", TURNS, None, *GEMMA, bos="<bos>", eos="<eos>", strips=True),
    "gemma3": Shape("trl:gemma3", TURNS, None, *GEMMA, bos="<bos>", eos="<eos>", strips=True),
    "mistral-v1": Shape(
        "mistral_v1", "<s> </s>", None, " [INST] {} [/INST]", "", "</s>", bos="<s>", eos="</s>", strips=True
    ),
    "mistral-v3": Shape(
        "mistral_v3",
        "<s> </s> [INST] [/INST]",
        None,
        "[INST] {}[/INST]",
        "",
        "</s>",
        bos="<s>",
        eos="</s>",
        strips=True,
    ),
    "zephyr": Shape(
        "zephyr", "<s> </s>", "<|system|>\n{}</s>\n", "<|user|>\n{}</s>\n", "<|assistant|>\n", "</s>", "\n", eos="</s>"
    ),
    "deepseek-v2": Shape(
        "deepseek_v2",
        DEEPSEEK,
        "{}\n\n",
        "User: {}\n\n",
        "Assistant:",
        "<｜end▁of▁sentence｜>",
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
    ),
    "deepseek-v3": Shape(
        "trl:deepseekv3",
        DEEPSEEK,
        "{}",
        "<｜User｜>{}",
        "<｜Assistant｜>",
        "<｜end▁of▁sentence｜>",
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
    ),
    "deepseek-r1": Shape(
        "trl:deepseek_r1_distill",
        DEEPSEEK,
        "{}",
        "<｜User｜>{}",
        "<｜Assistant｜>",
        "<｜end▁of▁sentence｜>",
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
    ),
    "smollm3": Shape("smollm3", IM, SMOLLM3_HEAD, *CHATML[1:], "<|im_end|>", "\n"),
}
SPACED = {"mistral-v1": " ", "mistral-v3": " ", "deepseek-v2": " "}
"""Text that a model writes before its answer, where the prompt does not end with it."""
SYSTEM_IN_USER = {"gemma3", "mistral-v3"}
QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
"""Qwen 2.5's own system prompt."""
DATES = {"llama3.2": {"date_string": "26 Jul 2024"}}


def of(shape: Shape) -> Any:
    return tokenizer_for(shape.template, shape.special, shape.bos, shape.eos)


CONTENTS = ("Hello there!", "  Yes, both. \n", "Yes, both.", "Yes, both.", "Nö?\n", "Nö, 42 🙂🙂 é\u0301")


def marked(name: str, contents: tuple[str, ...], system: str | None) -> str:
    shape = SHAPES[name]
    text = [shape.bos]
    in_user = ""
    if system is not None and name in SYSTEM_IN_USER:
        in_user = f"{system}\n\n"
    elif shape.system is not None and (system is not None or "Today Date" in shape.system):
        default = "Help." if name == "smollm3" else ""
        text.append(shape.system.format(default if system is None else system))
    with_system = len(contents) - 2 if name == "mistral-v3" else 0  # Mistral has it in the last question
    for index, content in enumerate(contents):
        # Mistral writes questions as they are
        said = content.strip() if shape.strips and not (name.startswith("mistral") and index % 2 == 0) else content
        if name == "smollm3" and index % 2:
            said = content.lstrip("\n")
        if index % 2 == 0:
            text.append(shape.user.format((in_user if index == with_system else "") + said))
        else:
            text.append(f"{shape.prompt}«{SPACED.get(name, '')}{said}{shape.end}»{shape.after}")
    return "".join([*text, shape.finish])


@pytest.mark.usefixtures("first_of_may")
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("system", [None, "Be brief.", ""])
def test_every_turn(name: str, system: str | None) -> None:
    shape, tokenizer = SHAPES[name], of(SHAPES[name])
    messages = turns(*CONTENTS, system=system)
    if system is not None and shape.system is None and name not in SYSTEM_IN_USER:
        with pytest.raises(DataError, match=facts("chat template", "system, user")):
            render(tokenizer, messages, DATES.get(name))
        return
    if name == "phi3.5" and system == "":
        system = None  # this template leaves an empty system turn out
    if name == "qwen2.5" and system is None:
        system = QWEN
    check(render(tokenizer, messages, DATES.get(name)), tokenizer, marked(name, CONTENTS, system))


@pytest.mark.usefixtures("first_of_may")
@pytest.mark.parametrize("name", SHAPES)
def test_the_last_turn_and_the_completion(name: str) -> None:
    tokenizer = of(SHAPES[name])
    everything = marked(name, CONTENTS, QWEN if name == "qwen2.5" else None)
    before, last = everything.rsplit("«", 1)
    expected = re.sub("[«»]", "", before) + "«" + last
    for train_on in ("last_assistant", "completion"):
        rendered = render(tokenizer, turns(*CONTENTS), DATES.get(name), config={"train_on": train_on})
        check(rendered, tokenizer, expected)
