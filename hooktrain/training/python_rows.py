"""Examples passed from Python: what can be read more than once, and what it holds, by content and not by identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

from torch.utils.data import IterableDataset

from hooktrain.compat import has_entries, is_data_frame, is_table, plain_value
from hooktrain.errors import DataError

__all__ = ["Again", "digest", "readable"]

_BLOCK = 1024
"""Rows of a table that are read at once."""
_EXPECTED = (
    "expected a list of mappings, a datasets.Dataset, a torch Dataset, an iterable, or a function that takes nothing"
    " and returns an iterator"
)


class Again:
    """Rows that a function gives anew each time they are read."""

    def __init__(self, function: Callable[[], Iterator[Any]]) -> None:
        self.function = function

    def __iter__(self) -> Iterator[Any]:
        return iter(self.function())


def readable(rows: Any, where: str) -> tuple[Any, bool]:
    """Rows as a source can have them, and whether they are a stream.

    Args:
        rows: what the user gave.
        where: the argument, for messages.

    Returns:
        Something with a length and entries, and False; or something that can be iterated over again and again, whose
        length is not known, and True.

    Raises:
        DataError: when they are neither.
    """
    name = type(rows).__name__
    if isinstance(rows, Mapping):
        raise DataError(
            f"{where}: given a mapping of {', '.join(map(str, list(rows)[:4]))}, expected rows; give one of its values"
        )
    if is_data_frame(rows):
        raise DataError(f"{where}: given a {name}; give its rows, as in {where}=frame.to_dict('records')")
    if isinstance(rows, Iterator):
        raise DataError(
            f"{where}: given a {name}, which can be read only once; give a list, or the function that makes it, as in"
            f" {where}=lambda: read_rows()"
        )
    iterable = isinstance(rows, Iterable)
    if isinstance(rows, IterableDataset):
        return rows, True
    if isinstance(rows, Sized) and (has_entries(rows) or iterable):
        return rows, False
    if iterable:
        return rows, True
    if callable(rows):
        return Again(rows), True
    lacking = "which has entries but no __len__, " if has_entries(rows) else ""
    raise DataError(f"{where}: given a {name}, {lacking}{_EXPECTED}")


def digest(rows: Any) -> str | None:
    """Text that is equal for equal rows; None where a value in them is of a kind that cannot be compared."""
    made = hashlib.blake2b(digest_size=16)
    try:
        for row in _each(rows):
            made.update(json.dumps(row, default=_plain).encode())  # keys in their order: templates render it
            made.update(b"\n")
    except (TypeError, ValueError):
        return None
    return made.hexdigest()


def _each(rows: Any) -> Iterator[Any]:
    if is_table(rows):  # a table, which is read a row at a time otherwise
        for block in rows.iter(batch_size=_BLOCK):
            names = list(block)
            for values in zip(*block.values(), strict=True):
                yield dict(zip(names, values, strict=True))
    elif isinstance(rows, Iterable):
        yield from rows
    else:
        yield from (rows[index] for index in range(len(rows)))


def _plain(value: Any) -> Any:
    """Arrays, tensors, bytes and dates as JSON can hold them."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    found = plain_value(value)
    if found is NotImplemented:
        raise TypeError(f"a {type(value).__name__} is no plain value")
    return found
