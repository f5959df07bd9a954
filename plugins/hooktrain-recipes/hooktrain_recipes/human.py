"""Numbers as ArcticTraining reads them: ``1_000``, ``16k``, ``2^10``, ``5%``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hooktrain import Collector
from hooktrain_recipes.values import number, whole

__all__ = ["human", "human_whole", "mapping_of", "plain_mapping", "positive_whole"]

_UNITS = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_FORM = re.compile(r"(-?\d+(?:\.\d+)?)(k|m|b|t|ki|mi|gi|ti)")
_POWER = re.compile(r"(\d+(?:\.\d+)?)\^(-?\d+(?:\.\d+)?)")


def human(value: Any) -> float | int:
    """A number in any of the forms; a whole one that is written as one stays one."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str):
        return number(value)
    text = value.replace("_", "").strip().lower()
    if text.endswith("%"):
        return number(text[:-1]) / 100
    if form := _FORM.fullmatch(text):
        return number(number(form[1]) * _UNITS[form[2]])
    if power := _POWER.fullmatch(text):
        try:
            return number(number(power[1]) ** number(power[2]))
        except (OverflowError, ZeroDivisionError):
            raise ValueError(f"given {value!r}, expected a number") from None
    return number(text)


def human_whole(value: Any) -> int:
    """A whole number that is not negative."""
    return whole(human(value))


def positive_whole(value: Any) -> int:
    """A whole number of at least 1."""
    made = human_whole(value)
    if made < 1:
        raise ValueError(f"given {value!r}, expected at least 1")
    return made


def plain_mapping(value: Any) -> dict[str, Any]:
    """A mapping."""
    if not isinstance(value, Mapping):
        raise ValueError(f"given {value!r}, expected a mapping")
    return {str(key): each for key, each in value.items()}


def mapping_of(found: Collector, key: str) -> Mapping[str, Any] | None:
    """The mapping at a key; None where there is none, which is then accounted for."""
    value = found.values[key]
    if isinstance(value, Mapping):
        return value
    if value is None:
        found.ignored(key, "null is the default")
    else:
        found.unsupported(key, f"given {value!r}, expected a mapping", "write {name: value}")
    return None
