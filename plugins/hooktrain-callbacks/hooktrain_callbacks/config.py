"""The recipe key ``callbacks``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from hooktrain import did_you_mean, field

__all__ = ["POLICIES", "CallbacksConfig", "Entry", "entry_of"]

POLICIES = ("stop", "disable", "warn")
"""What happens when a callback raises: the run stops, the callback is disabled, or a warning is printed."""


@attrs.frozen
class Entry:
    """One callback of a recipe.

    Attributes:
        name: its class, as ``package.module.Class``.
        arguments: of its constructor.
        on_error: one of :data:`POLICIES`, or None for the default of its class.
    """

    name: str
    arguments: Mapping[str, Any] = attrs.field(factory=dict)
    on_error: str | None = None


def entry_of(value: str | Mapping[str, Any]) -> Entry:
    """Read one entry of the list.

    Raises:
        ValueError: when the class is missing, a value is wrong, or an argument is there twice.
    """
    if isinstance(value, str):
        return Entry(value)
    rest = dict(value)
    name, policy, inner = rest.pop("name", None), rest.pop("on_error", None), rest.pop("arguments", None) or {}
    if not isinstance(name, str):
        raise ValueError(f"given {dict(value)}, expected 'name', the callback's class, such as name: package.Callback")
    if policy is not None and policy not in POLICIES:
        raise ValueError(
            f"{name}: on_error is '{policy}', expected one of {', '.join(POLICIES)}"
            f"{did_you_mean(str(policy), POLICIES)}"
        )
    if not isinstance(inner, Mapping):
        raise ValueError(f"{name}: arguments is {inner!r}, expected a mapping of the constructor's arguments")
    if twice := sorted(rest.keys() & inner.keys()):
        raise ValueError(f"{name}: '{twice[0]}' is given twice, directly and under arguments; keep one")
    return Entry(name, {**rest, **inner}, policy)


def _readable(instance: Any, attribute: Any, value: Any) -> None:
    for each in value:
        entry_of(each)


@attrs.frozen(kw_only=True)
class CallbacksConfig:
    """Callbacks of other frameworks; a list in the recipe is ``use``."""

    shorthand: ClassVar[str] = "use"

    use: tuple[str | Mapping[str, Any], ...] = field(default=(), validator=_readable, affects_training=False)
    """Classes by their full names, such as ``transformers.EarlyStoppingCallback``, or mappings of ``name``, arguments
    of the constructor (under ``arguments`` where one is called ``name``), and ``on_error``: ``stop``, ``disable`` or
    ``warn``."""
    arguments: Mapping[str, Any] = field(factory=dict, affects_training=False)
    """Fields of transformers' ``TrainingArguments`` that the recipe has no key for, such as ``metric_for_best_model``
    or ``project``."""
