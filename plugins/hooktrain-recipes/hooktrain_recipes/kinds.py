"""Values of another kind than a program takes, such as a list in place of a number, refused before they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hooktrain import Collector, did_you_mean
from hooktrain_recipes.tables import Row

__all__ = ["ERRORS", "check_kinds", "guarded", "refuse_unknown"]

ERRORS = (TypeError, ValueError, AttributeError, KeyError, IndexError, OverflowError)
"""What reading a value of another kind raises."""


def check_kinds(found: Collector, rows: Iterable[Row], structured: Iterable[str], lists: Iterable[str]) -> None:
    """Refuse values that are lists or mappings where the program takes a single value, and read them as null.

    Args:
        found: the translation.
        rows: the table; its keys that code translates are meant.
        structured: those of them that may be lists or mappings.
        lists: keys that are lists of names, or text.
    """
    for key in [row.key for row in rows if row.rule is None and "[" not in row.key]:
        value = found.values.get(key)
        single = value is None or isinstance(value, (str, int, float, bool))
        if single or key in structured:
            continue
        if key in lists and isinstance(value, list) and all(isinstance(each, str) for each in value):
            continue
        found.unsupported(key, f"given {value!r:.60}, expected a single value", "correct the value")
        found.values[key] = None


def guarded(found: Collector, translate: Callable[[], object], key: str) -> None:
    """Call a function; what it raises over a value of another kind becomes an entry of a key."""
    try:
        translate()
    except ERRORS:
        found.unsupported(key, f"a value of another kind than {found.program} takes", "correct the value")


def refuse_unknown(found: Collector, rows: Iterable[Row]) -> None:
    """Account for the keys that nothing accounts for yet.

    Those of the table ask for nothing if they are empty, and are refused for their value otherwise. Others are refused
    with the known key that each resembles.
    """
    known = {row.key for row in rows}
    for key in found.unaccounted():
        value = found.values[key]
        if key not in known:
            found.unsupported(key, f"unknown key of {found.program}{did_you_mean(key, known)}", "correct or remove it")
        elif value is None or value is False or value in (0, "", [], {}):
            found.ignored(key, "not used: this value asks for nothing")
        else:
            found.unsupported(key, f"given {value!r:.60}, which {found.program} does not use here", "remove it")
