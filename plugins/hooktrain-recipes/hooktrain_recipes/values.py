"""Values of recipes, checked: what YAML reads as text (``2e-5``) is the number that it is to the other program."""

from __future__ import annotations

import math
from typing import Any

__all__ = [
    "at_least_one", "flag", "flag_of", "listed", "number", "numeric", "parts_of", "path", "positive", "share",
    "split_of", "text", "whole",
]  # fmt: skip


def number(value: Any) -> float:
    """A number, be it written as text."""
    if not isinstance(value, bool) and isinstance(value, (int, float, str)):
        try:
            made = float(value)
        except (ValueError, OverflowError):
            made = math.nan
        if math.isfinite(made):
            return made
    raise ValueError(f"given {_shown(value)}, expected a number")


def numeric(value: Any) -> float:
    """A number, 0 for what is none; the key's own rule refuses that."""
    try:
        return number(value)
    except ValueError:
        return 0.0


def split_of(value: Any) -> list[float]:
    """Shares of training and evaluation."""
    held = number(value)
    if not 0 < held < 1:
        raise ValueError(f"given {_shown(value)}, expected a share between 0 and 1, or a number of examples")
    return [round(1 - held, 10), held]


def positive(value: Any) -> float:
    """A number above 0."""
    made = number(value)
    if made <= 0:
        raise ValueError(f"given {_shown(value)}, expected a number above 0")
    return made


def share(value: Any) -> float:
    """A number from 0 to 1."""
    made = number(value)
    if not 0 <= made <= 1:
        raise ValueError(f"given {_shown(value)}, expected a share from 0 to 1")
    return made


def whole(value: Any) -> int:
    """A whole number that is not negative, be it written as text or as ``3.0``."""
    made = number(value)
    if made != int(made) or made < 0:
        raise ValueError(f"given {_shown(value)}, expected a whole number that is not negative")
    return int(made)


def at_least_one(value: Any) -> int:
    """A whole number of at least 1."""
    made = whole(value)
    if made < 1:
        raise ValueError(f"given {_shown(value)}, expected at least 1")
    return made


def parts_of(total: Any, size: Any) -> int:
    """How often a size fits a total, which is a multiple of it."""
    whole_total, part = at_least_one(total), at_least_one(size)
    if whole_total % part:
        raise ValueError(f"given {whole_total}, expected a multiple of {part}")
    return whole_total // part


def flag(value: Any) -> bool:
    """True or false."""
    if isinstance(value, bool):
        return value
    if value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.lower() in ("true", "false", "yes", "no", "1", "0"):
        return value.lower() in ("true", "yes", "1")
    raise ValueError(f"given {_shown(value)}, expected true or false")


def flag_of(value: Any) -> bool:
    """True or false, false for what is neither; the key's own row refuses that."""
    try:
        return flag(value)
    except ValueError:
        return False


def text(value: Any) -> str:
    """Text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"given {_shown(value)}, expected text")
    return value


def path(value: Any) -> str:
    """A path."""
    return text(value)


def listed(value: Any) -> list[str]:
    """A list of names, be it written with commas."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return list(value)
    raise ValueError(f"given {_shown(value)}, expected a list of names")


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) < 60 else f"{shown[:57]}..."
