"""Conversations of examples, checked and converted to the form that chat templates expect."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hooktrain import DataError, did_you_mean
from hooktrain_sft.chat.tool_calls import plain, read_tool_calls
from hooktrain_sft.config import ROLES, is_weight
from hooktrain_sft.formatting import shown

__all__ = [
    "REASONING",
    "Message",
    "MessageWeight",
    "Messages",
    "end_of_reasoning",
    "is_empty",
    "read_messages",
    "without_reasoning",
]

Message = dict[str, Any]

_FLAGS = ("train", "training", "weight")
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Field names of an assistant's reasoning in data sets and templates; a message with reasoning gets the first two."""

_TEXTS = {"text": ("text",), "input_text": ("text",), "output_text": ("text",)}
_THOUGHTS = {"thinking": ("thinking", "text"), "reasoning": ("reasoning", "text", "content")}
"""Types of parts, of transformers, OpenAI, Mistral and Anthropic, and the fields that hold their text."""
_RESULTS = ("tool", "function", "ipython")
"""Roles whose content is the result of a call."""

_REASONING_BEGINS = re.compile(r"<think>|<seed:think>|<thinking>|<thought>|<reasoning>|\[THINK\]")
_REASONING_ENDS = re.compile(r"</think>|</seed:think>|</thinking>|</thought>|</reasoning>|\[/THINK\]")


class MessageWeight(NamedTuple):
    """Weights that the data give a message.

    Attributes:
        weight: of all of it.
        parts: where a part of its content has a weight, all of them in order, each as ``content`` or ``reasoning``, its
            text, and its weight.
    """

    weight: float
    parts: tuple[tuple[str, str, float], ...] = ()


class Messages(NamedTuple):
    """A conversation.

    Attributes:
        messages: each with a role and its content as one string.
        untrained: numbers of the messages that the data exclude from training.
        simple: whether all have only role and content.
        weights: weights of messages by their number, of those that have any but 0 and 1, or are no answers.
    """

    messages: list[Message]
    untrained: frozenset[int]
    simple: bool
    weights: Mapping[int, MessageWeight]


def read_messages(value: Any, where: str = "messages") -> Messages:
    """Read the conversation of an example.

    Fields that are None, as Arrow tables fill in absent ones, are removed, because templates test whether a field is
    there. ``train`` or ``training`` false, or ``weight`` 0, exclude a message from training; they are removed too, as
    are the weights of messages and of parts of their contents.

    Args:
        value: of the column.
        where: the column, for errors.

    Raises:
        DataError: when it is no conversation, or a message has no known role or no content.
    """
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise DataError(f"{where} is {shown(value)}, expected a list of {{role, content}}; convert the column")
    if not value:
        raise DataError(f"{where} is an empty list, expected at least one message; remove the example")
    messages: list[Message] = []
    untrained = []
    weights = {}
    simple = True
    for index, message in enumerate(value):
        # most messages have only these two fields, and are not copied
        if (
            type(message) is dict
            and len(message) == 2
            and type(message.get("content")) is str
            and message.get("role") in ROLES
        ):
            messages.append(message)
            continue
        read, parts = _read_message(message, f"{where}[{index}]")
        weight = _read_weight(read, f"{where}[{index}]")
        if weight == 0:
            untrained.append(index)
        elif parts or weight not in (None, 1) or (weight and read["role"] != "assistant"):
            weights[index] = MessageWeight(1.0 if weight is None else weight, parts)
        messages.append(read)
        simple = simple and len(read) == 2
    return Messages(messages, frozenset(untrained), simple, weights)


def is_empty(message: Message) -> bool:
    """Return whether an answer has no content, tool call or reasoning, so that only its end could be trained."""
    content = message.get("content")
    if content and not content.isspace():
        return False
    return not (message.get("tool_calls") or any(message.get(name) for name in REASONING))


def end_of_reasoning(content: str) -> int:
    """Return where the reasoning ends with which a content begins, its closing tag included; 0 where it has none."""
    found = _REASONING_ENDS.search(content)
    if found is None:
        return 0
    # the opening tag may stand in the prompt; where it stands within the text, the text is about such tags
    opened = _REASONING_BEGINS.search(content, 0, found.start())
    return found.end() if opened is None or not content[: opened.start()].strip() else 0


def without_reasoning(message: Message) -> Message:
    """Return an assistant's message without its reasoning, in fields and at the beginning of its content."""
    content = message.get("content")
    end = end_of_reasoning(content) if content and message["role"] == "assistant" else 0
    if not end and not any(name in message for name in REASONING):
        return message
    made = {name: value for name, value in message.items() if name not in REASONING}
    return {**made, "content": str(content)[end:].lstrip()} if end else made


def _read_message(message: Any, where: str) -> tuple[Message, tuple[tuple[str, str, float], ...]]:
    """Return a message, and the parts of its content if any of them has a weight."""
    if not isinstance(message, Mapping):
        raise DataError(f"{where} is {shown(message)}, expected a mapping with role and content; convert the column")
    read = {str(key): value for key, value in message.items() if value is not None}
    if "role" not in read:
        raise DataError(f"{where} has the fields {', '.join(map(str, message))}, expected 'role'; rename or add it")
    role = read["role"]
    if role not in ROLES:
        raise DataError(
            f"{where}.role is {shown(role)}, expected one of {', '.join(ROLES)}{did_you_mean(str(role), ROLES)};"
            " rename the role in the data"
        )
    calls = read.pop("tool_calls", None)
    if legacy := read.pop("function_call", None):  # OpenAI's older form of a single call
        if calls:
            raise DataError(f"{where} has tool_calls and function_call, expected one of them; remove the other")
        calls = [{"type": "function", "function": legacy}]
    if calls and role != "assistant":
        raise DataError(f"{where} (role {role}) has tool_calls, which only an assistant makes; correct the example")
    parts: tuple[tuple[str, str, float], ...] = ()
    if "content" in read:
        read["content"], thinking, parts = _read_content(read["content"], role, f"{where}.content")
        if thinking:
            if any(read.get(name, thinking) != thinking for name in REASONING):
                raise DataError(f"{where} has reasoning in its content and in a field, expected one; remove the other")
            read["reasoning_content"] = thinking
    elif not calls and not any(read.get(name) for name in REASONING):
        raise DataError(f"{where} (role {role}) has no content, expected text; fill it in or remove the example")
    for name, value in read.items():
        if type(value) is not str:
            read[name] = plain(value)
    if calls:
        read["tool_calls"] = read_tool_calls(calls, f"{where}.tool_calls")
    # data sets and templates have two names for it; like transformers, set both
    reasoning = next((read[name] for name in REASONING if name in read), None)
    return (read if reasoning is None else {"thinking": reasoning, **read, "reasoning_content": reasoning}), parts


def _read_weight(message: Message, where: str) -> float | None:
    """Remove a message's own training flags and return its weight: 0 where they exclude it, None where it has none."""
    flags = {}
    weight = None
    for name in _FLAGS:
        if name in message:
            value = message.pop(name)
            if name == "weight" and not is_weight(value):
                raise DataError(f"{where}.weight is {shown(value)}, expected 0 or a positive number; correct it")
            if name != "weight" and value not in (0, 1):  # true and false are 1 and 0
                raise DataError(f"{where}.{name} is {shown(value)}, expected true or false, or 1 or 0; correct it")
            flags[name] = bool(value)
            weight = float(value)
    if len(set(flags.values())) > 1:
        raise DataError(f"{where} has {' and '.join(flags)} that contradict each other, expected one; remove the other")
    if True in flags.values() and message["role"] != "assistant" and "weight" not in flags:
        raise DataError(
            f"{where} (role {message['role']}) has {next(iter(flags))} set to true, expected it for an assistant's"
            " messages only; remove it, or write `data.train_on: all`"
        )
    return weight


def _read_content(content: Any, role: str, where: str) -> tuple[str, str, tuple[tuple[str, str, float], ...]]:
    """Return the text and the reasoning of a content: text, or a list of parts, which are joined.

    The third is the parts, if any of them has a weight.

    Only some templates iterate over parts. A tool's result may be any value, which is written as JSON.
    """
    if isinstance(content, str):
        return str(content), "", ()
    parts = content if isinstance(content, Sequence) and not isinstance(content, bytes) else None
    if role in _RESULTS and (parts is None or not all(_text_of(part) is not None for part in parts)):
        return json.dumps(plain(content), ensure_ascii=False), "", ()
    if parts is None:
        raise DataError(f"{where} is {shown(content)}, expected text or a list of text parts; convert it")
    texts: list[str] = []
    thoughts: list[str] = []
    weighted: list[tuple[str, str, Any]] = []
    for index, part in enumerate(parts):
        weight = part.get("weight") if isinstance(part, Mapping) else None
        if weight is not None and not is_weight(weight):
            raise DataError(f"{where}[{index}].weight is {shown(weight)}, expected 0 or a positive number; correct it")
        thought = _text_of(part, _THOUGHTS) if role == "assistant" else None
        text = _text_of(part) if thought is None else None
        if thought is not None and not texts:
            thoughts.append(thought)
        elif text is not None:
            texts.append(text)
        elif thought is not None:
            raise DataError(f"{where}[{index}] is reasoning after text, expected it before; make two messages of them")
        else:
            raise DataError(
                f"{where}[{index}] is {shown(part)}, expected a text part {{type: text, text: ...}};"
                " this plugin trains on text only"
            )
        weighted.append(("content" if thought is None else "reasoning", str(text or thought or ""), weight))
    has_weights = any(weight not in (None, 1) for *_, weight in weighted)
    kept = tuple((kind, text, 1.0 if weight is None else float(weight)) for kind, text, weight in weighted)
    return "".join(texts), "\n".join(thoughts), kept if has_weights else ()


def _text_of(part: Any, kinds: Mapping[str, Sequence[str]] = _TEXTS) -> str | None:
    """Return the text of a part of one of these kinds; None for others."""
    if isinstance(part, str):
        return part if kinds is _TEXTS else None
    if not isinstance(part, Mapping):
        return None
    for name in kinds.get(part.get("type", "text"), ()):
        value = part.get(name)
        if isinstance(value, str):
            return value
        if isinstance(value, list) and value:  # Mistral's thoughts are parts of their own
            texts = [_text_of(item) for item in value]
            return None if None in texts else "".join(filter(None, texts))
    return None
