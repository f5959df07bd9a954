"""Origin of each value of a run's recipe, from what the run has noted."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePath

from hooktrain import RunFiles, flat_values

__all__ = ["DEFAULT", "origins_of"]

DEFAULT = "default"


def origins_of(run: RunFiles) -> dict[str, str]:
    """Return who has written each value of the recipe, by its path; empty where the run has not noted it.

    A value is from the command line, from the recipe's file, or a default.
    """
    if not run.given:
        return {}
    written = _written(run)
    line = set(_overrides(run.environment.get("command", ())))
    source = "given in Python" if run.source in ("", "recipe") else PurePath(run.source).name
    found = {}
    for path in run.recipe:
        is_of_line = any(_meet(name, each) for name in _names(path) for each in line)
        found[path] = DEFAULT if path not in written else "command line" if is_of_line else source
    return found


def _written(run: RunFiles) -> set[str]:
    """Return the paths whose values somebody has written, also in a short form such as ``sources: [rows.jsonl]``."""
    found = set()
    for name, value in flat_values(run.given):
        if value == {}:
            continue
        given = _plain(name)
        paths = [path for path in run.recipe if any(_meet(name, given) for name in _names(path))]
        entries = value if isinstance(value, list) else [value]
        equal = [path for path in paths if run.recipe[path] == value or run.recipe[path] in entries]
        is_short = all(given not in _names(path) for path in paths)
        found.update(equal if is_short and equal else paths)
    return found


def _names(path: str) -> set[str]:
    """Return how a path may be written: a list of one entry may be the entry."""
    plain = _plain(path)
    return {plain, plain.replace(".0", "")}


def _plain(path: str) -> str:
    return re.sub(r"\[(\d+)\]", r".\1", path)


def _meet(path: str, written: str) -> bool:
    """Whether one is the other or lies in it: a short form stands where its parent does."""
    return path == written or path.startswith(f"{written}.") or written.startswith(f"{path}.")


def _overrides(command: Sequence[str]) -> Iterator[str]:
    words = [str(word) for word in command]
    for number, word in enumerate(words):
        if word == "-o" and number + 1 < len(words):
            yield words[number + 1].partition("=")[0]
        elif word.startswith("-o") and "=" in word:
            yield word[2:].partition("=")[0]
