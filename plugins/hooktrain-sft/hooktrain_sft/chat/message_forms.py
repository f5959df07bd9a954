"""Forms of the same conversation, of which each chat template accepts some.

A template may want the arguments of a call as JSON text, no content beside a call as null, reasoning as a part of the
content, or content as a list of parts. It fails on another form, or renders less of it. The form that
``apply_chat_template`` is given is tried first; others only where a part is missing from its text.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hooktrain import DataError
from hooktrain_sft.chat.answer_spans import Conversation
from hooktrain_sft.chat.messages import REASONING, Message
from hooktrain_sft.chat.template import ChatTemplate, Form, Scope
from hooktrain_sft.chat.tool_calls import arguments_as_text
from hooktrain_sft.chat.unrendered import Unrendered, find_unrendered

__all__ = ["assert_tools_are_rendered", "converse"]


def converse(
    template: ChatTemplate, messages: Sequence[Message], scope: Scope
) -> tuple[Conversation, list[Unrendered]]:
    """Render a conversation in the first form of which the text holds every part, or the one that holds most.

    Returns:
        The conversation, and the parts that are missing from it.

    Raises:
        DataError: when the template cannot render any form.
    """
    first: DataError | None = None
    best: tuple[Conversation, list[Unrendered]] | None = None
    try:
        best = _render(template, messages, scope, ())
        if not best[1]:
            return best
    except DataError as problem:
        first = problem
    changing = tuple(form for form in _FORMS if any(form(message) is not message for message in messages))
    candidates = list(_combinations(changing))
    # examples of the same kind lack the same parts, whichever form is the best
    lacks = tuple(part[:3] for part in best[1]) if best else (str(first),)
    key = (tuple(m["role"] for m in messages), changing, lacks)
    known = template.forms.get(key)
    for number, forms in enumerate(candidates) if known is None else [(known, candidates[known])] * (known >= 0):
        try:
            made = _render(template, messages, scope, forms)
        except DataError:
            continue
        if best is None or len(made[1]) < len(best[1]):
            best, known = made, number
        if not made[1]:
            break
    if len(template.forms) < 4096:
        template.forms[key] = -1 if known is None else known
    if best is None:
        assert first is not None
        raise first
    return best


def _render(
    template: ChatTemplate, messages: Sequence[Message], scope: Scope, forms: tuple[Form, ...]
) -> tuple[Conversation, list[Unrendered]]:
    formed = template.with_forms(forms)
    trace = formed.trace(messages, scope)
    if any(form in _PARTS for form in forms) and _WRITTEN_PARTS.search(trace.text):
        raise DataError("the chat template writes the list of parts itself")
    return Conversation(formed, messages, scope, trace), find_unrendered(formed, messages, scope, trace)


def _combinations(forms: tuple[Form, ...]) -> Iterator[tuple[Form, ...]]:
    """Yield the combinations of forms, those of few first."""
    for count in range(1, len(forms) + 1):
        yield from itertools.combinations(forms, count)


def _arguments_as_text(message: Message) -> Message:
    return dict(arguments_as_text([message])[0]) if "tool_calls" in message else message


def _null_content(message: Message) -> Message:
    return {**message, "content": None} if "tool_calls" in message and message.get("content") == "" else message


def _empty_content(message: Message) -> Message:
    return message if "content" in message else {**message, "content": ""}


def _function_as_tool(message: Message) -> Message:
    return {**message, "role": "tool"} if message["role"] == "function" else message


def _developer_as_system(message: Message) -> Message:
    return {**message, "role": "system"} if message["role"] == "developer" else message


def _reasoning_as_part(message: Message) -> Message:
    if "reasoning_content" not in message:
        return message
    content = message.get("content")
    thinking = {"type": "thinking", "thinking": message["reasoning_content"]}
    made = {name: value for name, value in message.items() if name not in REASONING}
    return {**made, "content": [thinking, *([{"type": "text", "text": content}] if content else [])]}


def _content_as_parts(message: Message) -> Message:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


_FORMS: tuple[Form, ...] = (
    _arguments_as_text,
    _null_content,
    _empty_content,
    _function_as_tool,
    _developer_as_system,
    _reasoning_as_part,
    _content_as_parts,
)


_PARTS = (_reasoning_as_part, _content_as_parts)
_WRITTEN_PARTS = re.compile(r"""\{["']type["']: ?["'](?:text|thinking)["']""")
"""A list of parts as Python or JSON writes it, which no template means to render."""


def assert_tools_are_rendered(chat: Conversation, tools: Sequence[Mapping[str, Any]]) -> None:
    """Raise where the text is the same without the tools."""
    if "tools" in chat.template.reads:
        try:
            if chat.template.render(chat.messages, {**chat.scope, "tools": None}) != chat.text:
                return
        except DataError:
            return
    raise DataError(
        f"tools: given {len(tools)}, but the chat template renders none of them; give a tokenizer.chat_template that"
        " renders them, or remove them from the example"
    )
