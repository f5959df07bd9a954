"""A translated recipe as YAML, with a comment on each line that was not copied one to one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from hooktrain.recipe.dialects import Translation, values_of
from hooktrain.recipe.libyaml import dump_line, load

__all__ = ["commented_yaml"]

_LONGEST = 60
"""Characters of an original value that a comment shows."""


def commented_yaml(translation: Translation, raw: Mapping[str, Any], heading: str) -> str:
    """Return a translated recipe as YAML text, which reads back as ``translation.recipe``.

    Args:
        translation: the recipe and its account.
        raw: the original.
        heading: the comment above the recipe, without ``#``.
    """
    lines = [*heading.splitlines()]
    if translation.unsupported:
        lines += ["", "Not supported, and so missing here:"]
        lines += [f"- {each.key}: {each.reason}; {each.remedy}" for each in translation.unsupported]
    head = "".join(f"# {_shown(line)}".rstrip() + "\n" for line in lines)
    comments = {path: _shown(text) for path, text in _comments(translation, values_of(raw))}
    for blocks in (True, False):  # text that no block can hold is quoted
        text = "".join(f"{line}\n" for line in _Writer(comments, blocks).mapping(translation.recipe, "", ""))
        if load(text) == translation.recipe or not blocks:
            break
    return f"{head}\n{text}" if translation.recipe else f"{head}{{}}\n"


def _comments(translation: Translation, original: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the comment of each path of the recipe that needs one; it is empty where a value was copied."""
    ours = values_of(translation.recipe)
    sources: dict[str, list[str]] = {}
    inside = {entry.key.rpartition("[")[0] for entry in translation.translated if entry.key.endswith("]")}
    for entry in translation.translated:
        for path in entry.to if entry.key not in inside else ():
            sources.setdefault(path, []).append(entry.key)
    for path, value in ours.items():
        keys = sources.get(path)
        if keys is None:
            if path in translation.notes:
                yield path, translation.notes[path]
            continue
        if len(keys) > 1:
            yield path, f"from {', '.join(keys)}"
        elif keys[0] == path and original.get(path) == value:
            yield path, ""
        else:
            given = original.get(keys[0])
            shown = json.dumps(given, default=str, ensure_ascii=False)
            plain = not isinstance(given, (Mapping, list)) and len(shown) <= _LONGEST
            same = given == value and isinstance(given, bool) == isinstance(value, bool)
            yield path, f"from {keys[0]}" + (f": {shown}" if plain and not same else "")


def _shown(text: str) -> str:
    """Text on one line, without characters that YAML does not take."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in " ".join(text.split()))


class _Writer:
    def __init__(self, comments: Mapping[str, str], blocks: bool) -> None:
        self.comments = comments
        self.blocks = blocks

    def mapping(self, value: Mapping[Any, Any], path: str, indent: str, told: bool = False) -> Iterator[str]:
        """Yield the lines of a mapping; ``told`` says that a line above has told where it comes from."""
        for key, each in value.items():
            inner = f"{path}.{key}" if path else str(key)
            yield from self.entry(f"{indent}{_plain(key)}:", each, inner, f"{indent}  ", told)

    def entry(self, start: str, value: Any, path: str, indent: str, told: bool) -> Iterator[str]:
        """Yield the lines of a value after ``start``, a key or a dash."""
        comment = self.comments.get(path)
        inside = isinstance(value, Mapping) or (isinstance(value, list) and any(map(_has_lines, value)))
        if inside and value:
            yield start + (f"  # {comment}" if comment else "")
            below = told or comment is not None
            if isinstance(value, Mapping):
                yield from self.mapping(value, path, indent, below)
            else:
                yield from self.list(value, path, indent, below)
            return
        if comment is None and not told:
            comment = "follows from the recipe as a whole"
        tail = f"  # {comment}" if comment else ""
        if self.blocks and isinstance(value, str) and "\n" in value and value == value.lstrip():
            yield f"{start} |{'' if value.endswith(chr(10)) else '-'}{tail}"
            yield from (f"{indent}{line}" if line else "" for line in value.removesuffix("\n").split("\n"))
        else:
            yield f"{start} {_plain(value)}{tail}"

    def list(self, value: list[Any], path: str, indent: str, told: bool) -> Iterator[str]:
        """Yield the lines of a list that has mappings or lists among its entries."""
        for at, each in enumerate(value):
            inner = f"{path}[{at}]"
            first, *rest = self.entry(f"{indent}-", each, inner, f"{indent}  ", told)
            if _has_lines(each) and each and first.strip() == "-":  # the first key stands on the line of the dash
                first = f"{indent}- {rest.pop(0).lstrip()}"
            yield first
            yield from rest


def _has_lines(value: Any) -> bool:
    return isinstance(value, (Mapping, list))


def _plain(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, str) and "\n" in value:
        return json.dumps(value)
    return dump_line(value)
