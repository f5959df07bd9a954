"""Where a line of a translated recipe comes from, if no key of the original says it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hooktrain import Collector

__all__ = ["explain"]

_REASONS = {
    "checkpoint": "{program} saves states while it trains, and the model at its end",
    "run_dir": "the default of {program}",
    "model.name_or_path": "the model is refused",
    "model.type": "the kernels of Liger are refused",
    "data": "a part of its set is refused",
    "peft": "the adapter is refused in this form",
    "strategy": "a part of it is refused",
    "optimizer": "a part of it is refused",
    "scheduler": "a part of it is refused",
    "prompts": "the set that it belongs to is refused",
}


def explain(found: Collector) -> None:
    """Note where each line comes from that neither a key of the original nor a default has set."""
    made = found.translation()
    known = {to for entry in made.translated for to in entry.to} | set(made.notes)
    for path in _leaves(found.recipe, ""):
        if not any(path == each or path.startswith((f"{each}.", f"{each}[")) for each in known):
            why = next((why for start, why in _REASONS.items() if path.startswith(start)), "follows the rest")
            found.notes[path] = why.format(program=found.program)


def _leaves(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for at, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{at}]")
    else:
        yield path
