"""Documents and fields of messages that only some templates render."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hooktrain import DataError
from hooktrain_sft.chat.answer_spans import Conversation
from hooktrain_sft.chat.messages import REASONING
from hooktrain_sft.chat.template import ChatTemplate, Scope
from hooktrain_sft.chat.tool_calls import plain

__all__ = ["not_rendered", "with_documents"]

_KNOWN = frozenset({"role", "content", "tool_calls", *REASONING})
"""Fields of messages that are rendered, or refused where they are not."""


def with_documents(template: ChatTemplate, scope: Scope, documents: Any) -> Scope:
    """Return a template's variables with an example's documents, if the template reads them."""
    if not documents or "documents" not in template.reads or not _are_documents(documents):
        return scope
    return {**scope, "documents": plain(documents)}


def _are_documents(value: Any) -> bool:
    return isinstance(value, Sequence) and all(isinstance(document, Mapping) for document in value)


def not_rendered(chat: Conversation, documents: Any) -> tuple[str, ...]:
    """Return ``documents`` and the fields of messages without which the text is the same."""
    unused = [] if not documents or _renders_documents(chat) else ["documents"]
    if all(len(message) <= 2 for message in chat.messages):
        return tuple(unused)
    more = dict.fromkeys(name for message in chat.messages for name in message if name not in _KNOWN)
    if more:
        bare = [{name: value for name, value in message.items() if name in _KNOWN} for message in chat.messages]
        if _renders(chat, bare, chat.scope):
            more = {name: None for name in more if name not in chat.template.reads}
    return (*unused, *(f"messages.{name}" for name in more))


def _renders_documents(chat: Conversation) -> bool:
    """Return whether the text differs without any one of the documents."""
    documents = chat.scope.get("documents") or []
    return bool(documents) and all(
        _renders(chat, chat.messages, {**chat.scope, "documents": documents[:at] + documents[at + 1 :] or None})
        for at in range(len(documents))
    )


def _renders(chat: Conversation, messages: Sequence[Any], scope: Scope) -> bool:
    """Return whether the text of other messages or variables is another, or there is none."""
    try:
        return chat.template.render(messages, scope) != chat.text
    except DataError:
        return True
