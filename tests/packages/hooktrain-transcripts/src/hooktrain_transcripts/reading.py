"""Dialogs as text, and their turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hooktrain import DataError, did_you_mean

__all__ = ["COLUMN", "split_dialogs", "to_messages"]

COLUMN = "transcript"
"""The column that holds a dialog."""

_ROLES = ("system", "user", "assistant")


def split_dialogs(text: str) -> list[str]:
    """Split a file into its dialogs, at lines of ``---``."""
    dialogs, lines = [], []
    for line in [*text.splitlines(), "---"]:
        if line.strip() != "---":
            lines.append(line)
            continue
        if any(each.strip() for each in lines):
            dialogs.append("\n".join(lines).strip("\n"))
        lines = []
    return dialogs


def to_messages(row: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the transcript of an example by ``messages``.

    Raises:
        DataError: when a line is neither a turn nor indented.
    """
    messages: list[dict[str, str]] = []
    for number, line in enumerate(row[COLUMN].splitlines(), 1):
        role, colon, said = line.partition(":")
        if line[:1].isspace() and messages:
            messages[-1]["content"] += f"\n{line.strip()}"
        elif colon and role in _ROLES:
            messages.append({"role": role, "content": said.strip()})
        elif line.strip():
            raise DataError(
                f"{COLUMN}, line {number}: given {line!r}, expected a turn such as 'user: ...'"
                f"{did_you_mean(role, _ROLES)}; indent the line if it continues the turn above"
            )
    return {**{name: value for name, value in row.items() if name != COLUMN}, "messages": messages}
