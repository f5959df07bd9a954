"""Tables of a dialect: one row for each key of the other program, from which translations and guides are made.

A key such as ``data.sources[].split`` stands for the ``split`` of every source.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from hooktrain import Collector

__all__ = [
    "Row",
    "all_ignored",
    "apply",
    "at",
    "by",
    "ignored",
    "keys_of",
    "linked",
    "moved",
    "nothing",
    "same",
    "sections",
    "table_of",
    "told",
    "unsupported",
]

Rule = Callable[[Collector, str], None]
"""Accounts for one key that the original has."""


@attrs.frozen(kw_only=True)
class Row:
    """A key of the other program, and what becomes of it.

    Attributes:
        key: its path; ``[]`` stands for every entry of a list.
        ours: keys of the hooktrain recipe as the guide shows them; empty where there are none.
        about: what a reader should know: how the value is converted, why the key has no effect, what is missing.
        kind: ``translated``, ``ignored`` or ``unsupported``; what the key usually is.
        rule: accounts for the key; None where the code of the dialect does that.
    """

    key: str
    ours: str = ""
    about: str = ""
    kind: str = "translated"
    rule: Rule | None = None


def same(*keys: str, about: str = "") -> Iterator[Row]:
    """Rows of keys that have the same name and meaning in a hooktrain recipe."""
    for key in keys:
        yield moved(key, key, about=about)


def moved(key: str, to: str, convert: Callable[[Any], Any] | None = None, about: str = "") -> Row:
    """The row of a key that is one of ours; ``to`` has ``[]`` where ``key`` has.

    Args:
        key: its path.
        to: the path in the hooktrain recipe.
        convert: makes our value; a ``ValueError`` makes the key an unsupported one, with its message.
        about: how the value is converted, for the guide.
    """
    return Row(key=key, ours=f"`{to}`", about=about, rule=lambda found, path: found.copy(path, at(to, path), convert))


def ignored(key: str, reason: str) -> Row:
    """The row of a key without effect here."""
    return Row(key=key, about=reason, kind="ignored", rule=lambda found, path: found.ignored(path, reason))


def all_ignored(reason: str, *keys: str) -> Iterator[Row]:
    """Rows of keys without effect here, for one reason."""
    for key in keys:
        yield ignored(key, reason)


def nothing(*keys: str) -> Iterator[Row]:
    """Rows of keys that code accounts for where they ask for something: a value that does not is the default."""

    def rule(found: Collector, path: str) -> None:
        value = found.values[path]
        if value is None or value is False or value in (0, "", [], {}):
            name = "null" if value is None else str(value).lower() if isinstance(value, (bool, int, float)) else "empty"
            found.ignored(path, f"{name} is the default")

    for key in keys:
        yield by(key, rule, about="nothing is asked for where it is empty or false", kind="ignored")


def told(rows: Mapping[str, tuple[str, str]]) -> Iterator[Row]:
    """Rows of keys that code translates, as ``key: (our keys, about)``."""
    for key, (ours, about) in rows.items():
        yield Row(key=key, ours=" ".join(f"`{name}`" for name in ours.split()), about=about)


def unsupported(key: str, reason: str, remedy: str, *, off: Sequence[Any] = (None, False)) -> Row:
    """The row of a key that a hooktrain recipe cannot say.

    Args:
        key: its path.
        reason: what is missing.
        remedy: what the user can do.
        off: values that ask for nothing, and so have no effect.
    """

    def rule(found: Collector, path: str) -> None:
        value = found.values[path]
        if any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in off):
            found.ignored(path, "not used: this value asks for nothing")
        else:
            found.unsupported(path, reason, remedy)

    return Row(key=key, about=reason, kind="unsupported", rule=rule)


def by(key: str, rule: Rule, ours: str = "", about: str = "", kind: str = "translated") -> Row:
    """The row of a key with a rule of its own."""
    return Row(key=key, ours=ours, about=about, kind=kind, rule=rule)


def apply(found: Collector, rows: Iterable[Row]) -> None:
    """Account for every key of the original that a row stands for."""
    for row in rows:
        if row.rule is None:
            continue
        for path in keys_of(found, row.key):
            if found.accounted(path):
                continue
            try:
                row.rule(found, path)
            except (TypeError, ValueError, AttributeError, KeyError, OverflowError):  # a value of another kind
                given = f"given {found.values[path]!r:.60}, which {found.program} would not take either"
                found.unsupported(path, given, "correct the value")


def keys_of(found: Collector, key: str) -> list[str]:
    """The paths of the original that a row's key stands for."""
    if "[]" not in key:
        return [key] if key in found else []
    pattern = re.compile(re.escape(key).replace(re.escape("[]"), r"\[\d+\]"))
    return [path for path in found.values if pattern.fullmatch(path)]


def sections(found: Collector, rows: Iterable[Row]) -> None:
    """Account for sections of the table, such as ``data``, that the original has without any key in them."""
    names = {re.split(r"\[\]", key)[0] for row in rows for key in _prefixes(row.key)}
    for key in found.unaccounted():
        if key not in names:
            continue
        value = found.values[key]
        if value in (None, "") or value in ({}, []):
            found.ignored(key, "null is the default" if value is None else "empty")
        else:
            found.unsupported(
                key, f"given {value!r:.60}, expected keys and values", f"correct it as {found.program} has it"
            )


def _prefixes(key: str) -> Iterator[str]:
    steps = key.split(".")
    for count in range(1, len(steps) + (steps[-1].endswith("[]"))):
        yield ".".join(steps[:count])


def linked(found: Collector, key: str, held: Mapping[str, Any], translate: Callable[[Collector, str], None]) -> None:
    """Account for a key that names a file by what the file holds.

    Args:
        found: the translation, whose recipe gets what the file says.
        key: the key that names the file.
        held: what the file holds.
        translate: accounts for everything in the file, which it finds under ``key``.
    """
    nested: Any = held
    for step in reversed(key.split(".")):
        nested = {step: nested}
    inner = Collector(nested, found.program)
    inner.recipe, inner.notes = found.recipe, found.notes
    translate(inner, key)
    account = inner.translation()
    targets = [to for entry in account.translated for to in entry.to]
    if targets:
        found.translated(key, *targets)
    else:
        found.ignored(key, "nothing in it has an effect here")
    for entry in account.ignored:
        if entry.key != key:
            found.ignored(entry.key, entry.reason)
    for refused in account.unsupported:
        found.unsupported(refused.key, refused.reason, refused.remedy)


def at(to: str, path: str) -> str:
    """A target such as ``data.sources[].split`` with the places in lists that a path has."""
    places = iter(re.findall(r"\[\d+\]", path))
    return re.sub(re.escape("[]"), lambda _: next(places, "[0]"), to)


def table_of(rows: Iterable[Row], program: str) -> str:
    """Return the tables of a dialect in Markdown, for its guide."""
    rows = list(rows)
    lines = ["## What has a counterpart", "", f"| {program} | hooktrain | |", "|---|---|---|"]
    for row in rows:
        if row.kind == "translated":
            lines.append(f"| `{row.key}` | {_cell(row.ours)} | {_cell(row.about)} |")
    for kind, title in (("ignored", "What has no effect here"), ("unsupported", "What is not supported")):
        reasons: dict[str, list[str]] = {}
        for row in rows:
            if row.kind == kind:
                reasons.setdefault(row.about, []).append(f"`{row.key}`")
        if reasons:
            lines += ["", f"## {title}", "", f"| {program} | why |", "|---|---|"]
            lines += [f"| {', '.join(dict.fromkeys(keys))} | {_cell(why)} |" for why, keys in reasons.items()]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
