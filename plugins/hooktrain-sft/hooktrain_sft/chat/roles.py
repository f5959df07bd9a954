"""Roles of messages by the names that data sets have for them."""

from __future__ import annotations

from typing import Any

from hooktrain_sft.config import ROLES

__all__ = ["CALLERS", "role_of"]

CALLERS = ("function_call", "tool_call")
"""Names for an assistant whose text is a tool call."""

_NAMES = (
    {role: role for role in ROLES}
    | dict.fromkeys(("human", "prompter", "usr"), "user")
    | dict.fromkeys(("gpt", "chatgpt", "ai", "model", "bot", "chatbot", "bard", "bing", *CALLERS), "assistant")
    | dict.fromkeys(("observation", "function_response", "tool_response", "tool_result"), "tool")
    | {"sys": "system"}
)


def role_of(name: Any) -> str | None:
    """Return the role that a name means, in capital or small letters; None where that is not known."""
    return _NAMES.get(name.strip().lower()) if isinstance(name, str) else None
