"""The format ``role_mapping``, for examples whose turns are in columns or entries that a mapping names by role.

Entries of a list keep their order, whatever their roles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hooktrain import DataError
from hooktrain_sft.chat.tool_calls import calls_in
from hooktrain_sft.config import RoleMapping, SFTDataConfig, SourceOptions, check_role_mapping, paths_of
from hooktrain_sft.data.formats import Example, Format
from hooktrain_sft.data.turns import read_turns
from hooktrain_sft.formatting import shown

__all__ = ["CONTENT_KEYS", "KNOWN_DATA_SETS", "TOOLS", "role_mapping_format"]

TOOLS = ("tools", "tool_defs", "functions")
"""Columns with the tools of a conversation."""

CONTENT_KEYS = ("content", "text", "message", "value")
"""Fields that may hold the text of an entry when ``content_key`` is not set."""

_PLACES = {"system": 0, "developer": 0, "user": 1, "assistant": 3}
"""Order of turns from columns of their own, whatever the order of the recipe's keys; others stay between."""

KNOWN_DATA_SETS: Mapping[str, RoleMapping] = {
    "databricks/databricks-dolly-15k": {"user": ("context", "instruction"), "assistant": "response"},
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

    reads = frozenset(path.partition(".")[0] for path in paths_of(mapping))

    def recognise(columns: Sequence[str], example: Example) -> str | None:
        if not mapping:
            return None
        missing = reads - set(columns)
        if missing and options.role_mapping:
            raise DataError(
                f"data.role_mapping: given {', '.join(sorted(missing))}, which the examples do not have; expected"
                f" some of the columns {', '.join(map(str, columns))}; correct the mapping"
            )
        return None if missing else f"the name of the data set, {name}"

    def convert(example: Example) -> Example:
        return {**example, "messages": _messages(example, mapping, options.content_key)}

    return Format("role_mapping", "columns that `data.role_mapping` names", recognise, convert, "messages", reads)


def _messages(example: Example, mapping: RoleMapping, content_key: str | None) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    read: set[str] = set()
    for role in sorted(mapping, key=lambda role: _PLACES.get(role, 2)):
        paths = paths_of(mapping, role)
        column, _, rest = paths[0].partition(".")
        if not rest:
            there = [path for path in paths if example.get(path) not in (None, "")]
            if role == "system" and not there:  # many sets leave it empty
                continue
            calls = calls_in(example.get(column)) if role == "assistant" and _has_tools(example) else None
            if calls is not None and len(paths) == 1:
                messages.append({"role": role, "tool_calls": calls})
                continue
            texts = [_text(example.get(path), path) for path in there or paths[:1]]
            messages.append({"role": role, "content": "\n".join(texts)})
        elif column not in read:
            read.add(column)
            entries = {role: paths_of(mapping, role)[0].split(".") for role in mapping}
            roles = {tuple(path[1:]): role for role, path in entries.items() if path[0] == column and path[1:]}
            messages += _entries(example.get(column), column, roles, content_key)
    return messages


def _has_tools(example: Example) -> bool:
    return any(example.get(name) for name in TOOLS)


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
