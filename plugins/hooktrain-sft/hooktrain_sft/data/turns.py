"""Turns of a conversation, from the forms in which data sets store a list of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hooktrain import DataError
from hooktrain_sft.formatting import shown

__all__ = ["read_turns"]


def read_turns(value: Any, where: str) -> Sequence[Any]:
    """Return the turns of a conversation: of a list, of its JSON text, or of a mapping of lists.

    Parquet has one set of fields for all messages, so that conversations with tools are kept as text in it. A list of
    mappings that ``datasets`` calls a ``Sequence`` is stored as ``{role: [...], content: [...]}``.

    Raises:
        DataError: when it is something else.
    """
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        value = _from_json(value, where, "a list of {role, content}")
    if isinstance(value, Mapping) and value and all(isinstance(field, (list, tuple)) for field in value.values()):
        lengths = {len(field) for field in value.values()}
        if len(lengths) > 1:
            raise DataError(f"{where} has fields of {sorted(lengths)} entries, expected as many of each; correct it")
        value = [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)]
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise DataError(
            f"{where} is {shown(value)}, expected a list of {{role, content}} or {{from, value}}; convert the column"
        )
    if any(isinstance(turn, str) and turn.lstrip().startswith("{") for turn in value):
        value = [_from_json(turn, where, "a message") if isinstance(turn, str) else turn for turn in value]
    return value


def _from_json(text: str, where: str, expected: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as problem:
        raise DataError(f"{where} is text that is not JSON ({problem}), expected {expected}; correct it") from None
