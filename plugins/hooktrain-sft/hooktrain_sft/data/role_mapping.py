"""The format ``role_mapping``, for examples whose turns are in columns or entries that a mapping names by role.

Entries of a list keep their order, whatever their roles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hooktrain import DataError
from hooktrain_sft.config import SFTDataConfig, SourceOptions, check_role_mapping
from hooktrain_sft.data.formats import Example, Format
from hooktrain_sft.data.turns import read_turns
from hooktrain_sft.formatting import shown

__all__ = ["CONTENT_KEYS", "KNOWN_DATA_SETS", "role_mapping_format"]

CONTENT_KEYS = ("content", "text", "message", "value")
"""Fields that may hold the text of an entry when ``content_key`` is not set."""

_PLACES = {"system": 0, "developer": 0, "user": 1, "assistant": 3}
"""Order of turns from columns of their own, whatever the order of the recipe's keys; others stay between."""

KNOWN_DATA_SETS: Mapping[str, Mapping[str, str]] = {
    "lmsys/lmsys-chat-1m": {"user": "conversation.role.user", "assistant": "conversation.role.assistant"},
    "ise-uiuc/Magicoder-OSS-Instruct-75K": {"user": "problem", "assistant": "solution"},
    "meta-math/MetaMathQA": {"user": "query", "assistant": "response"},
    # its messages hold the question only
    "nvidia/AceMath-Instruct-Training-Data": {"user": "messages.role.user", "assistant": "answer"},
    "Open-Orca/OpenOrca": {"system": "system_prompt", "user": "question", "assistant": "response"},
}
"""Mappings of hub data sets whose columns no other format recognises."""


def role_mapping_format(source: Any, config: SFTDataConfig) -> Format:
    """Return the format for a source: with its or the recipe's mapping, or that of a known data set."""
    options = SourceOptions.of(source, config)
    name = options.name_or_path.partition(":")[0]
    mapping = options.role_mapping or KNOWN_DATA_SETS.get(name, {})
    try:
        check_role_mapping(mapping)
    except ValueError as problem:
        raise DataError(f"role_mapping: {problem}; correct it") from None

    def recognise(columns: Sequence[str], example: Example) -> str | None:
        if not mapping:
            return None
        missing = {path.partition(".")[0] for path in mapping.values()} - set(columns)
        if missing and options.role_mapping:
            raise DataError(
                f"data.role_mapping: given {', '.join(sorted(missing))}, which the examples do not have; expected"
                f" some of the columns {', '.join(map(str, columns))}; correct the mapping"
            )
        return None if missing else f"the name of the data set, {name}"

    def convert(example: Example) -> Example:
        return {**example, "messages": _messages(example, mapping, options.content_key)}

    reads = frozenset(path.partition(".")[0] for path in mapping.values())
    return Format("role_mapping", "columns that `data.role_mapping` names", recognise, convert, "messages", reads)


def _messages(example: Example, mapping: Mapping[str, str], content_key: str | None) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    read: set[str] = set()
    for role, path in sorted(mapping.items(), key=lambda item: _PLACES.get(item[0], 2)):
        column, _, rest = path.partition(".")
        if not rest:
            if not (role == "system" and not example.get(column)):  # many sets leave the system prompt empty
                messages.append({"role": role, "content": _text(example.get(column), column)})
        elif column not in read:
            read.add(column)
            roles = {tuple(p.split(".")[1:]): r for r, p in mapping.items() if p.startswith(f"{column}.")}
            messages += _entries(example.get(column), column, roles, content_key)
    return messages


def _entries(
    entries: Any, column: str, roles: Mapping[tuple[str, ...], str], content_key: str | None
) -> list[dict[str, Any]]:
    try:
        turns = read_turns(entries, column)
    except DataError as problem:
        raise DataError(f"{problem}, or correct `data.role_mapping`") from None
    made = []
    for index, entry in enumerate(turns):
        where = f"{column}[{index}]"
        if not isinstance(entry, Mapping):
            raise DataError(f"{where} is {shown(entry)}, expected a mapping; correct `data.role_mapping`")
        role = next((role for (field, value), role in roles.items() if entry.get(field) == value), None)
        if role is None:
            fields = sorted({field for field, _ in roles})
            found = ", ".join(f"{field} {shown(entry.get(field))}" for field in fields)
            raise DataError(
                f"{where} has {found}, which `data.role_mapping` gives no role; add it, such as"
                f" `tool: {column}.{fields[0]}.{entry.get(fields[0])}`"
            )
        key = content_key or next((key for key in CONTENT_KEYS if entry.get(key) is not None), None)
        if key is None or entry.get(key) is None:
            raise DataError(
                f"{where} has the fields {', '.join(map(str, entry))}, expected text in"
                f" {content_key or ' or '.join(CONTENT_KEYS)}; name the field with `data.content_key`"
            )
        rest = {name: field for name, field in entry.items() if name != key and (name, field) not in roles}
        made.append({**rest, "role": role, "content": _text(entry[key], f"{where}.{key}")})
    return made


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):  # a number would be written in a way of our own
        raise DataError(f"{where} is {shown(value)}, expected text; correct `data.role_mapping` or the example")
    return value
