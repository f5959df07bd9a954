"""Turns of a conversation, from the forms in which data sets store a list of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hooktrain import DataError
from hooktrain_sft.formatting import shown
from hooktrain_sft.json_text import read_json

__all__ = ["read_turns"]


def read_turns(value: Any, where: str) -> Sequence[Any]:
    """Return the turns of a conversation: of a list, of its JSON text, or of a mapping of lists.

    Parquet has one set of fields for all messages, so that conversations with tools are kept as text in it. A list of
    mappings that ``datasets`` calls a ``Sequence`` is stored as ``{role: [...], content: [...]}``.

    Raises:
        DataError: when it is something else.
    """
    turns: Any = value
    if isinstance(turns, str) and turns.lstrip().startswith(("[", "{")):
        turns = read_json(turns, where, "a list of {role, content}")
        turns = [_with_exact_calls(turn) for turn in turns] if isinstance(turns, list) else turns
    if isinstance(turns, Mapping):
        turns = _from_lists(turns, where)
    if isinstance(turns, (str, bytes, Mapping)) or not isinstance(turns, Sequence):
        raise DataError(
            f"{where} is {shown(value)}, expected a list of {{role, content}} or {{from, value}}; convert the column"
        )
    if any(isinstance(turn, str) and turn.lstrip().startswith("{") for turn in turns):
        turns = [_with_exact_calls(read_json(t, where, "a message")) if isinstance(t, str) else t for t in turns]
    read: Sequence[Any] = turns
    return read


def _from_lists(fields: Mapping[str, Any], where: str) -> Any:
    """Return the entries of a mapping of lists; the mapping where its values are no lists."""
    lists = {name: entries for name, entries in fields.items() if entries is not None}
    if not lists or not all(isinstance(entries, (list, tuple)) for entries in lists.values()):
        return fields
    lengths = {name: len(entries) for name, entries in lists.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{count} {name}" for name, count in lengths.items())
        raise DataError(f"{where} has lists of different lengths ({counts}), expected as many of each; correct it")
    return [dict(zip(lists, turn, strict=True)) for turn in zip(*lists.values(), strict=True)]


def _with_exact_calls(turn: Any) -> Any:
    """Return a turn with its calls as JSON text, in which null is a value; elsewhere it is how Arrow fills gaps."""
    if isinstance(turn, Mapping) and isinstance(turn.get("tool_calls"), list):
        return {**turn, "tool_calls": json.dumps(turn["tool_calls"])}
    return turn
