# ruff: noqa: RUF001 - DeepSeek writes its tokens with the wide vertical line
"""Every part of every message, in the templates of TRL's package: trained, untrained, or counted in the report.

Each part carries a word of its own. The words are looked for in the ids that get a loss and in those that do not.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hooktrain_sft.chat.render import render_sft
from hooktrain_sft.config import SFTDataConfig
from hooktrain_sft.data.tokenize import Encoder

from hooktrain import DataError
from tests.plugins.sft.masks import tokenizer_for

SPECIAL = re.compile(
    r"<\|[^<>|\s{}]+\|>|<｜[^｜{}]+｜>|</?s>|\[/?[A-Z_]{3,}\]|<[a-z]+_of_[a-z]+>|<\|[a-z_]+>|<[a-z_]+\|>|<bos>"
)
TEMPLATES = ("qwen3", "gemma4_v5", "llama3_1", "gptoss", "glm4moe", "deepseek_r1_distill", "cohere2", "smolvlm")


def all_templates() -> list[str]:
    spec = importlib.util.find_spec("trl")
    folder = Path(str(spec and spec.origin)).parent / "chat_templates"
    return sorted(path.stem for path in folder.glob("*.jinja") if path.stem not in TEMPLATES)


class Words:
    """Words for the parts of a conversation, with the kind of each and whether it is an answer's."""

    def __init__(self) -> None:
        self.kinds: dict[str, tuple[str, bool]] = {}

    def __call__(self, kind: str, answer: bool = False) -> str:
        word = "qz" + "".join(chr(ord("a") + int(digit)) for digit in f"{len(self.kinds):03d}") + "w"
        self.kinds[word] = (kind, answer)
        return word


def user(word: Words) -> Any:
    return {"role": "user", "content": f"Tell me {word('question')}?"}


def said(word: Words, thinks: bool = False, calls: int = 0, inline: bool = False, speaks: bool = True) -> Any:
    content = f"It is {word('content', True)}." if speaks else ""
    if inline:
        content = f"<think>\nThink {word('reasoning', True)} now.\n</think>\n\n{content}"
    made: dict[str, Any] = {"role": "assistant", "content": content}
    if thinks:
        made["reasoning_content"] = f"Think {word('reasoning', True)} now."
    if calls:
        made["tool_calls"] = [
            {
                "type": "function",
                "id": f"call{number:05d}",
                "function": {
                    "name": "get",
                    "arguments": {"city": word("argument", True), "kind": word("argument", True)},
                },
            }
            for number in range(calls)
        ]
    return made


def result(word: Words, number: int = 0) -> Any:
    content = f"Result {word('result')}"
    return {"role": "tool", "name": "get", "tool_call_id": f"call{number:05d}", "content": content}


def system(word: Words, role: str = "system") -> Any:
    return {"role": role, "content": f"Be {word(role)}."}


TOOL = {
    "type": "function",
    "function": {
        "name": "get",
        "description": "gets",
        "parameters": {
            "type": "object",
            "properties": {name: {"type": "string", "description": "c"} for name in ("city", "kind")},
        },
    },
}
CONVERSATIONS: dict[str, Callable[[Words], list[Any]]] = {
    "two answers": lambda w: [user(w), said(w), user(w), said(w)],
    "system": lambda w: [system(w), user(w), said(w), user(w), said(w)],
    "reasoning": lambda w: [user(w), said(w, True), user(w), said(w, True), user(w), said(w, True)],
    "inline reasoning": lambda w: [user(w), said(w, inline=True), user(w), said(w, inline=True)],
    "call": lambda w: [user(w), said(w, calls=1, speaks=False), result(w), said(w)],
    "content and call": lambda w: [user(w), said(w, calls=1), result(w), said(w)],
    "two calls": lambda w: [user(w), said(w, calls=2, speaks=False), result(w), result(w, 1), said(w)],
    "all": lambda w: [system(w), user(w), said(w, True, 1), result(w), said(w, True), user(w), said(w, True)],
    "developer": lambda w: [system(w, "developer"), user(w), said(w)],
    "second system": lambda w: [system(w), system(w), user(w), said(w)],
    "system within": lambda w: [user(w), said(w), system(w), user(w), said(w)],
    "ends with a question": lambda w: [user(w), said(w), user(w)],
    "two questions": lambda w: [user(w), user(w), said(w)],
    "answer after answer": lambda w: [user(w), said(w), said(w)],
}


def faults(name: str, turns: str) -> Iterator[str]:
    """What is wrong with one of the conversations in a template."""
    special = dict.fromkeys(SPECIAL.findall(_source(name)))
    end = next(
        (token for token in ("<|return|>", "<|im_end|>", "<turn|>", "<|END_OF_TURN_TOKEN|>") if token in special),
        "</s>",
    )
    tokenizer = tokenizer_for(f"trl:{name}", " ".join([*special, *({"<s>", "</s>"} - {*special})]), "<s>", end)
    encoder = Encoder(tokenizer)
    for title, make in CONVERSATIONS.items():
        word = Words()
        messages = make(word)
        tools = [TOOL] if any("tool_calls" in message for message in messages) else None
        config = SFTDataConfig(sources=(object(),), reasoning_turns=turns)  # type: ignore[arg-type]
        try:
            rendered = render_sft({"messages": messages, "tools": tools}, tokenizer, config)
        except DataError:
            continue
        with_loss, without = "", ""
        for ids, mask in encoder([rendered]):
            for trained, pairs in itertools.groupby(
                zip(ids.tolist(), mask.tolist(), strict=True), lambda pair: pair[1]
            ):
                text = tokenizer.decode([index for index, _ in pairs])
                if trained:
                    with_loss += "\0" + text
                else:
                    without += "\0" + text
        for one, (kind, answer) in word.kinds.items():
            if one in with_loss and not answer:
                yield f"{title}: {kind} of another role is trained"
            if one not in with_loss and answer and not rendered.notes:
                yield f"{title}: {kind} is not trained, and nothing says so"
            if one not in with_loss + without and not rendered.notes:
                yield f"{title}: {kind} is not rendered, and nothing says so"
        for header in ("<|im_start|>assistant", "<|turn>model", "<|START_OF_TURN_TOKEN|>", "<|start_header_id|>"):
            if f"\0{header}" in with_loss:
                yield f"{title}: the header {header} is trained"


def _source(name: str) -> str:
    from tests.plugins.sft.masks import template

    return template(f"trl:{name}")


@pytest.mark.parametrize("turns", ["last", "split"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_no_part_is_lost(name: str, turns: str) -> None:
    assert list(faults(name, turns)) == []


@pytest.mark.thorough
@pytest.mark.parametrize("turns", ["last", "split", "all"])
@pytest.mark.parametrize("name", all_templates())
def test_no_part_is_lost_in_any_template(name: str, turns: str) -> None:
    assert list(faults(name, turns)) == []
