"""Recipes of other programs: what a dialect is, and the account that it gives of every key."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import attrs

from hooktrain.errors import Complaint, PluginError, RecipeError, did_you_mean

if TYPE_CHECKING:
    from hooktrain.plugin.manager import PluginHost

__all__ = [
    "Collector",
    "Dialect",
    "Ignored",
    "Translated",
    "Translation",
    "Unsupported",
    "dialects_of",
    "recognise",
    "translate",
    "values_of",
]


@attrs.frozen(kw_only=True)
class Translated:
    """A key of the original that the recipe says with keys of its own.

    Attributes:
        key: path in the original, such as ``datasets[0].type``.
        to: paths in the hooktrain recipe, such as ``data.sources[0].format``.
    """

    key: str
    to: tuple[str, ...]


@attrs.frozen(kw_only=True)
class Ignored:
    """A key of the original that has no effect here.

    Attributes:
        key: path in the original.
        reason: why nothing is lost, such as "prepared data is always cached here".
    """

    key: str
    reason: str


@attrs.frozen(kw_only=True)
class Unsupported:
    """A key of the original that means something that a hooktrain recipe cannot say.

    Attributes:
        key: path in the original.
        reason: what is missing.
        remedy: what the user can do.
    """

    key: str
    reason: str
    remedy: str


@attrs.define(kw_only=True)
class Translation:
    """A recipe of another program as a hooktrain recipe, with an account of every key.

    Attributes:
        recipe: the hooktrain recipe as plain values.
        translated: keys that the recipe says.
        ignored: keys without effect here.
        unsupported: keys that the recipe cannot say.
        notes: paths of ``recipe`` that come from no key of the original, and why they are there: a default of the
            other program that is not ours.
        not_a_recipe: why the original is no training recipe; empty where it is one.
    """

    recipe: dict[str, Any] = attrs.field(factory=dict)
    translated: list[Translated] = attrs.field(factory=list)
    ignored: list[Ignored] = attrs.field(factory=list)
    unsupported: list[Unsupported] = attrs.field(factory=list)
    notes: dict[str, str] = attrs.field(factory=dict)
    not_a_recipe: str = ""


@runtime_checkable
class Dialect(Protocol):
    """The recipes of another program.

    Attributes:
        name: what ``--from`` calls it.
        summary: the program and the files that are meant, in a few words.
    """

    @property
    def name(self) -> str: ...
    @property
    def summary(self) -> str: ...

    def recognises(self, raw: Mapping[str, Any]) -> bool:
        """Whether a recipe is this program's beyond doubt: it has keys that are its own and not hooktrain's."""
        ...

    def translate(self, raw: Mapping[str, Any], folder: Path) -> Translation:
        """Translate a recipe.

        Args:
            raw: what the file holds.
            folder: the file's folder, for files that the recipe refers to. Only data is read; code is never run.

        Returns:
            The recipe and the account. An error of the original is an unsupported entry, never an exception.
        """
        ...


class Collector:
    """Builds a translation key by key; what no rule has touched becomes an unsupported entry.

    ::

        found = Collector(raw, "my program")
        found.copy("lr", "optimizer.lr")
        found.ignored("tf32", "TF32 is torch's default here")
        return found.translation()

    A path such as ``datasets[0].type`` names a key of the original. An entry for a mapping or a list accounts for
    everything in it that has no entry of its own.

    Args:
        raw: the original.
        program: its program, for messages.
    """

    def __init__(self, raw: Mapping[str, Any], program: str) -> None:
        self.program = program
        self.recipe: dict[str, Any] = {}
        self.notes: dict[str, str] = {}
        self.values: dict[str, Any] = {}
        self._parents: dict[str, str] = {}
        self._entries: dict[str, Translated | Ignored | Unsupported] = {}
        for path, value, parent in _walk(raw, ""):
            if path in self.values:
                again = "written twice: as a mapping, and as a key with a dot"
                self.unsupported(path, again, "keep one of them")
            self.values[path], self._parents[path] = value, parent
        inner = set(self._parents.values())
        self.leaves = [path for path in self.values if path not in inner]

    # ------------------------------------------------------------------------------------------ the original

    def __contains__(self, key: str) -> bool:
        """Whether the original has a key, be it null."""
        return key in self.values

    def get(self, key: str, default: Any = None) -> Any:
        """The value at a path of the original; ``default`` where there is none or it is null."""
        value = self.values.get(key)
        return default if value is None else value

    # ------------------------------------------------------------------------------------------- the recipe

    def set(self, to: str, value: Any) -> None:
        """Set a value of the hooktrain recipe; lists such as ``data.sources[1].split`` grow, with null in gaps."""
        target: Any = self.recipe
        for step, following in itertools.zip_longest(_steps(to), _steps(to)[1:]):
            if isinstance(step, int):
                target.extend([None] * (step + 1 - len(target)))
            if following is None:
                target[step] = value
            elif (target[step] if isinstance(step, int) else target.get(step)) is None:
                target[step] = [] if isinstance(following, int) else {}
            target = target[step]

    def has(self, to: str) -> bool:
        """Whether the hooktrain recipe has a value at a path."""
        target: Any = self.recipe
        for step in _steps(to):
            known = step in target if isinstance(target, dict) else isinstance(step, int) and step < len(target)
            if not known:
                return False
            target = target[step]
        return True

    def default(self, to: str, value: Any, why: str) -> None:
        """Set a value of the recipe that no key has set, where the other program's default is not ours."""
        if not self.has(to):
            self.set(to, value)
            self.notes[to] = why

    # ----------------------------------------------------------------------------------------- the account

    def copy(self, key: str, to: str, convert: Callable[[Any], Any] | None = None) -> None:
        """Translate a key that the original has to one of the recipe; null is the default, and sets nothing.

        Args:
            key: path in the original.
            to: path in the recipe.
            convert: makes the recipe's value; a ``ValueError`` or ``TypeError`` becomes an unsupported entry.
        """
        if key not in self.values:
            return
        value = self.values[key]
        if value is None and not key.endswith("]"):  # in a list it takes its place
            self.ignored(key, "null is the default")
            return
        try:
            made = value if convert is None or value is None else convert(value)
        except (ValueError, TypeError, OverflowError) as problem:
            self.unsupported(key, str(problem), f"correct the value, which {self.program} would not take either")
            return
        self.set(to, made)
        self.translated(key, to)

    def translated(self, key: str, *to: str) -> None:
        """Note that the recipe says a key; once more adds to its targets."""
        before = self._entries.get(key)
        if isinstance(before, Unsupported):
            return
        more = before.to if isinstance(before, Translated) else ()
        self._entries[key] = Translated(key=key, to=tuple(dict.fromkeys((*more, *to))))

    def ignored(self, key: str, reason: str) -> None:
        """Note that a key of the original has no effect here."""
        self._entries.setdefault(key, Ignored(key=key, reason=reason))

    def unsupported(self, key: str, reason: str, remedy: str) -> None:
        """Note that the recipe cannot say a key; this precedes other entries of the key."""
        if not isinstance(self._entries.get(key), Unsupported):
            self._entries[key] = Unsupported(key=key, reason=reason, remedy=remedy)

    def accounted(self, key: str) -> bool:
        """Whether a key, or a mapping or list that it lies in, has an entry."""
        while key and key not in self._entries:
            key = self._parents.get(key, "")
        return bool(key)

    def unaccounted(self) -> list[str]:
        """The keys of the original that nothing accounts for yet."""
        return [key for key in self.leaves if not self.accounted(key)]

    def translation(self, known: Iterable[str] = ()) -> Translation:
        """The translation, in the order of the original, with an unsupported entry for what nothing accounts for.

        Args:
            known: keys of the program, one of which an unknown key may have meant.
        """
        known = list(known)
        for key in self.unaccounted():
            close = did_you_mean(key, known)
            self.unsupported(key, f"unknown key of {self.program}{close}", "remove it, or set it in the new recipe")
        for key, value in self.values.items():  # a list that begins with a plain value has an entry as a whole as well
            if isinstance(value, list) and value and not isinstance(value[0], (Mapping, list)):
                inside = [entry for path, entry in self._entries.items() if path.startswith(f"{key}[")]
                targets = [to for entry in inside if isinstance(entry, Translated) for to in entry.to]
                if targets and not self.accounted(key):
                    self.translated(key, *targets)
        order = {key: at for at, key in enumerate(self.values)}
        entries = sorted(self._entries.values(), key=lambda entry: order.get(entry.key, len(order)))
        return Translation(
            recipe=_type_first(self.recipe),
            translated=[entry for entry in entries if isinstance(entry, Translated)],
            ignored=[entry for entry in entries if isinstance(entry, Ignored)],
            unsupported=[entry for entry in entries if isinstance(entry, Unsupported)],
            notes={path: why for path, why in self.notes.items() if self.has(path)},
        )


def _type_first(value: Any) -> Any:
    """A recipe with the ``type`` of each part before its other keys."""
    if isinstance(value, list):
        return [_type_first(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {key: _type_first(value[key]) for key in sorted(value, key=lambda key: key != "type")}


def values_of(raw: Any) -> dict[str, Any]:
    """Return every value of nested mappings and lists by its path, such as ``datasets[0].type``.

    Entries of a list have paths of their own where one of them is a mapping or a list.
    """
    return {path: value for path, value, _ in _walk(raw, "")}


def _walk(value: Any, path: str) -> Iterator[tuple[str, Any, str]]:
    """Yield path, value and the parent's path of everything below a value."""
    inner: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        inner = [(f"{path}.{key}" if path else str(key), each) for key, each in value.items()]
    elif isinstance(value, list) and any(isinstance(each, (Mapping, list)) for each in value):
        inner = [(f"{path}[{at}]", each) for at, each in enumerate(value)]
    for below, each in inner:
        yield below, each, path
        yield from _walk(each, below)


def _steps(path: str) -> list[str | int]:
    """The steps of ``data.sources[0].split``."""
    found: list[str | int] = []
    for step in path.split("."):
        name, *places = step.split("[")
        found += [name, *(int(place.removesuffix("]")) for place in places)]
    return found


# --------------------------------------------------------------------------------------------- of the plugins


def dialects_of(host: PluginHost) -> dict[str, Dialect]:
    """Return each dialect that a plugin registers, by its name.

    Raises:
        PluginError: two plugins register one name, or one registers something else.
    """
    found: dict[str, Dialect] = {}
    owners: dict[str, str] = {}
    for implementation in host.implementations("register_recipe_dialects"):
        plugin = implementation.plugin_name
        register = cast(Callable[[], Iterable[Any] | None], implementation.function)
        for dialect in register() or ():
            if not isinstance(dialect, Dialect):
                raise PluginError(
                    f"plugin '{plugin}', hook register_recipe_dialects: given {dialect!r}, expected an object with"
                    " name, summary, recognises and translate"
                )
            if dialect.name in found:
                raise PluginError(
                    f"the plugins '{owners[dialect.name]}' and '{plugin}' both register the dialect '{dialect.name}';"
                    f" disable one of them with -p no:{plugin}"
                )
            found[dialect.name], owners[dialect.name] = dialect, plugin
    return dict(sorted(found.items()))


def recognise(raw: Mapping[str, Any], host: PluginHost, source: str = "recipe") -> Dialect | None:
    """Return the dialect that a recipe is written in; None where no dialect knows it.

    Raises:
        RecipeError: several dialects recognise it.
    """
    fit = [dialect for dialect in dialects_of(host).values() if dialect.recognises(raw)]
    if len(fit) > 1:
        names = " and ".join(f"{each.name} ({each.summary})" for each in fit)
        choose = " or ".join(f"--from {each.name}" for each in fit)
        raise RecipeError([Complaint("", f"has keys of {names}; choose one with {choose}")], source)
    return fit[0] if fit else None


def translate(raw: Mapping[str, Any], name: str, folder: Path, host: PluginHost, source: str = "recipe") -> Translation:
    """Translate a recipe of the dialect ``name``.

    Args:
        raw: the recipe as it was read.
        name: of the dialect.
        folder: the file's folder.
        host: the plugins.
        source: what to call the recipe in errors.

    Raises:
        RecipeError: no dialect has this name.
    """
    known = dialects_of(host)
    if name not in known:
        listed = ", ".join(known) or "none, as no installed plugin registers one"
        said = f"--from {name}: no plugin registers this dialect{did_you_mean(name, known)}; there are {listed}"
        raise RecipeError([Complaint("", said)], source)
    return known[name].translate(raw, folder)
