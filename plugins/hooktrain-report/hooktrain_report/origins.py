"""Origin of each value of a run's recipe, from what the run has noted."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from hooktrain import RunFiles

__all__ = ["DEFAULT", "origins_of"]

DEFAULT = "default"


def origins_of(run: RunFiles) -> dict[str, str]:
    """Return who has written each value of the recipe, by its path; empty where the run has not noted it.

    A value is from the command line, from the recipe's file, or a default.
    """
    if not run.given:
        return {}
    written = set(_paths(run.given, ""))
    line = set(_overrides(run.environment.get("command", ())))
    source = "given in Python" if run.source in ("", "recipe") else PurePath(run.source).name
    found = {}
    for path in run.recipe:
        names = {_plain(path), _plain(path).replace(".0", "")}  # a list of one entry may be written as the entry
        if any(_meet(name, each) for name in names for each in line):
            found[path] = "command line"
        elif any(_meet(name, each) for name in names for each in written):
            found[path] = source
        else:
            found[path] = DEFAULT
    return found


def _meet(path: str, written: str) -> bool:
    """Whether one is the other or lies in it: a short form stands where its parent does."""
    return path == written or path.startswith(f"{written}.") or written.startswith(f"{path}.")


def _plain(path: str) -> str:
    return re.sub(r"\[(\d+)\]", r".\1", path)


def _paths(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _paths(inner, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value):
        for number, entry in enumerate(value):
            yield from _paths(entry, f"{path}.{number}")
    else:
        yield path


def _overrides(command: Sequence[str]) -> Iterator[str]:
    words = [str(word) for word in command]
    for number, word in enumerate(words):
        if word == "-o" and number + 1 < len(words):
            yield words[number + 1].partition("=")[0]
        elif word.startswith("-o") and "=" in word:
            yield word[2:].partition("=")[0]
