"""Values that columns and messages hold as JSON text."""

from __future__ import annotations

import json
from typing import Any

from hooktrain import DataError

__all__ = ["loads", "read_json"]


def loads(text: str) -> Any:
    """Return the value of JSON text.

    Raises:
        ValueError: it is none, is nested too deeply, or two fields of an object have the same name, of which one would
            be lost.
    """
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"two fields are named '{next(name for name in names if names.count(name) > 1)}'")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def read_json(text: str, where: str, expected: str) -> Any:
    """Read a field that holds JSON text.

    Raises:
        DataError: when it is none.
    """
    try:
        return loads(text)
    except ValueError as problem:
        raise DataError(f"{where} is text that is not JSON ({problem}), expected {expected}; correct it") from None
