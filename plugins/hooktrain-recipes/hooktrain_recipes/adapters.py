"""Adapters: the names that programs have for PEFT's options, and what they cannot say here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from hooktrain import Collector

__all__ = ["copy_all", "targets", "without_adapter"]


def copy_all(found: Collector, rows: Iterable[tuple[str, str, Callable[[Any], Any] | None]]) -> None:
    """Copy each key that the original has, as ``(key, target, converter)``."""
    for key, to, convert in rows:
        if not found.accounted(key):
            found.copy(key, to, convert)


def without_adapter(found: Collector, keys: Iterable[str], why: str) -> None:
    """Account for keys of an adapter where none is trained."""
    for key in keys:
        if key in found:
            found.ignored(key, why)


def targets(value: Any) -> str | list[str]:
    """Target modules: names, one expression of complete names, or ``all-linear``."""
    if isinstance(value, str) and value:
        if value in ("all", "all-linear", "all_linear"):
            return "all-linear"
        return [name.strip() for name in value.split(",")] if "," in value and "(" not in value else value
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        made: list[str] = list(value)
        return made[0] if len(made) == 1 and set(made[0]) & set("|([*") else made
    raise ValueError(f"given {value!r:.60}, expected names of modules")


def plain(value: Any) -> dict[Any, Any]:
    """A mapping."""
    if not isinstance(value, Mapping):
        raise ValueError(f"given {value!r:.60}, expected a mapping")
    return dict(value)
