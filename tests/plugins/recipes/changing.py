"""Changing recipes of other programs in tests, by the keys of a dialect's table."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["copied", "put"]


def put(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set a key such as ``data.sources[].split``, of the first entry of a list, replacing what is in the way."""
    steps = [step for part in key.split(".") for step in re.findall(r"[^\[\]]+|\[\]", part)]
    target: Any = raw
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        where: Any = 0 if step == "[]" else step
        if isinstance(target, list):
            target += [None] * (1 - len(target))
        if following is None:
            target[where] = value
            return
        wanted = list if following == "[]" else dict
        inner = target[0] if isinstance(target, list) else target.get(where)
        if not isinstance(inner, wanted):
            target[where] = inner = wanted()
        target = inner


def copied(value: Any) -> Any:
    """A copy of nested mappings and lists."""
    if isinstance(value, dict):
        return {key: copied(each) for key, each in value.items()}
    return [copied(each) for each in value] if isinstance(value, list) else value
