"""A row's conversation, checked and brought into the one form that chat templates expect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hooktrain import DataError
from hooktrain_sft.config import ROLES

__all__ = ["ROLES", "read_messages", "read_tools"]

Message = dict[str, Any]


def read_messages(row: Any) -> list[Message]:
    """The conversation of a row: ``messages``, each with a role and its content as one string.

    Absent fields (None, as Arrow tables fill them in) are left out, as templates ask whether a field is there.

    Raises:
        DataError: when there is no conversation, or a message has no known role or no content.
    """
    if not isinstance(row, Mapping) or "messages" not in row:
        given = f"columns {', '.join(map(str, row))}" if isinstance(row, Mapping) else type(row).__name__
        raise DataError(
            f"given {given}, expected the column 'messages', a list of {{role, content}}; rename or convert the columns"
        )
    messages = row["messages"]
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise DataError(f"messages is {_shown(messages)}, expected a list of {{role, content}}; convert the column")
    if not messages:
        raise DataError("messages is an empty list, expected at least one message; remove the row")
    return [_read_message(message, index) for index, message in enumerate(messages)]


def _read_message(message: Any, index: int) -> Message:
    where = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise DataError(f"{where} is {_shown(message)}, expected a mapping with role and content; convert the column")
    read = {str(key): value for key, value in message.items() if value is not None}
    if "role" not in read:
        raise DataError(f"{where} has the fields {', '.join(map(str, message))}, expected 'role'; rename or add it")
    if read["role"] not in ROLES:
        raise DataError(
            f"{where}.role is {_shown(read['role'])}, expected one of {', '.join(ROLES)}; rename the role in the data"
        )
    if "content" in read:
        read["content"] = _read_content(read["content"], f"{where}.content")
    elif not (read["role"] == "assistant" and read.get("tool_calls")):
        raise DataError(f"{where} (role {read['role']}) has no content, expected text; fill it in or remove the row")
    return read


def _read_content(content: Any, where: str) -> str:
    """Text, or transformers' list of text parts, as text: only some templates iterate over parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and not isinstance(content, bytes):
        texts = []
        for index, part in enumerate(content):
            kind = part.get("type", "text") if isinstance(part, Mapping) else None
            if kind != "text" or not isinstance(part.get("text"), str):
                raise DataError(
                    f"{where}[{index}] is {_shown(part)}, expected a text part {{type: text, text: ...}};"
                    " this plugin trains on text only"
                )
            texts.append(part["text"])
        return "".join(texts)
    raise DataError(f"{where} is {_shown(content)}, expected text or a list of text parts; convert it")


def read_tools(row: Mapping[str, Any]) -> list[Any] | None:
    """The tools that a row offers to the model: a list of JSON schemas, or that list as JSON text.

    Raises:
        DataError: when ``tools`` is something else.
    """
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError as problem:
            raise DataError(f"tools is text that is not JSON ({problem}), expected a list of JSON schemas") from None
    if not tools:
        return None
    if isinstance(tools, (str, Mapping)) or not isinstance(tools, Sequence):
        raise DataError(f"tools is {_shown(tools)}, expected a list of JSON schemas; convert the column")
    return list(tools)


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
