"""Rendering of conversations with tools, in the form that the template accepts."""

from __future__ import annotations

from collections.abc import Sequence

from hooktrain import DataError
from hooktrain_sft.chat.answer_spans import Conversation
from hooktrain_sft.chat.messages import Message
from hooktrain_sft.chat.template import ChatTemplate, Scope
from hooktrain_sft.chat.tool_calls import arguments_as_text

__all__ = ["assert_tools_are_rendered", "converse"]


def converse(template: ChatTemplate, messages: list[Message], scope: Scope) -> Conversation:
    """Render a conversation.

    Templates differ in the form of an assistant's turn that only calls tools. The form that ``apply_chat_template``
    passes is tried first. Where the template fails on it, or omits the calls, arguments are passed as JSON text and an
    absent content as null.
    """
    calls = [i for i, message in enumerate(messages) if "tool_calls" in message]
    if not calls:
        return Conversation(template, messages, scope, template.trace(messages, scope))
    texts = arguments_as_text(messages)
    first: DataError | None = None
    for variant in (messages, texts, _with_null_content(messages), _with_null_content(texts)):
        try:
            chat = Conversation(template, variant, scope, template.trace(variant, scope))
            _assert_calls_are_rendered(chat, calls)
            return chat
        except DataError as problem:
            first = first or problem
    assert first is not None
    raise first


def _with_null_content(messages: Sequence[Message]) -> list[Message]:
    return [{**m, "content": None} if "tool_calls" in m and not m.get("content") else m for m in messages]


def _assert_calls_are_rendered(chat: Conversation, calls: Sequence[int]) -> None:
    """Raise where the text is the same without the tool calls, so that an empty answer would be trained."""
    without = [{k: v for k, v in message.items() if k != "tool_calls"} for message in chat.messages]
    try:
        other = chat.template.trace(without, chat.scope)
    except DataError:
        return  # the template needs them
    for index in calls:
        regions = chat.trace.regions.get(index), other.regions.get(index)
        turns = [t[slice(*r)] if r else t for t, r in zip((chat.text, other.text), regions, strict=True)]
        if turns[0] == turns[1]:
            raise DataError(
                f"messages[{index}].tool_calls: the chat template renders none of them; give a tokenizer.chat_template"
                " that renders them, or remove them from the example"
            )


def assert_tools_are_rendered(chat: Conversation, tools: int) -> None:
    """Raise where the text is the same without the tools."""
    if "tools" in chat.template.reads:
        try:
            if chat.template.render(chat.messages, {**chat.scope, "tools": None}) != chat.text:
                return
        except DataError:
            return
    raise DataError(
        f"tools: given {tools}, but the chat template renders none of them; give a tokenizer.chat_template that renders"
        " them, or remove them from the example"
    )
