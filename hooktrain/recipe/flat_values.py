"""A recipe's values by their paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["flat_values"]


def flat_values(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Return each value in nested mappings with its path, such as ``optimizer.lr`` or ``checkpoint[0].type``.

    A list without mappings is one value, and so is an empty mapping.

    Args:
        value: a recipe, or a part of one.
        path: where it stands.
    """
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flat_values(inner, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value):
        for number, entry in enumerate(value):
            yield from flat_values(entry, f"{path}[{number}]")
    else:
        yield path, value
