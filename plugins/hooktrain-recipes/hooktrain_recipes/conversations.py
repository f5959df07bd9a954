"""Conversations whose messages have other names of fields and roles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hooktrain import DataError

__all__ = ["Messages"]

_ROLES = {
    name: ours
    for ours, names in (
        ("system", "system sys"),
        ("user", "user human prompter usr"),
        ("assistant", "assistant gpt chatgpt ai model bot chatbot"),
        ("tool", "tool observation function_response tool_response ipython"),
    )
    for name in names.split()
}
"""Roles by the names that data sets have for them."""


class Messages:
    """Gives messages our names of fields and roles."""

    def __init__(
        self,
        fields: Mapping[str, str] | None = None,
        roles: Mapping[str, str] | None = None,
        without_system: bool = False,
    ) -> None:
        self.ours = {theirs: ours for ours, theirs in (fields or {}).items()}
        self.taken = {*self.ours, *self.ours.values()}
        self.roles, self.without_system = {**_ROLES, **(roles or {})}, without_system

    def __call__(self, example: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**example, "messages": self.turns(example.get("messages"))}

    def turns(self, messages: Any) -> list[Mapping[str, Any]]:
        """Return messages with our names."""
        if not isinstance(messages, list) or not all(isinstance(turn, Mapping) for turn in messages):
            raise DataError(f"messages is {messages!r:.80}, expected a list of mappings; correct or remove the example")
        made: list[Mapping[str, Any]] = []
        for turn in messages:
            named = {name: value for name, value in turn.items() if name not in self.taken}
            named |= {ours: turn[theirs] for theirs, ours in self.ours.items() if theirs in turn}
            role: Any = named.get("role")
            named["role"] = self.roles.get(role, self.roles.get(str(role).lower(), role))
            if not (self.without_system and named["role"] == "system"):
                made.append(named)
        return made
