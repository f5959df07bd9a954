"""Aliases: keys of other programs that mean the same as keys of ours, declared by the plugin that owns the target."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import attrs

from hooktrain.errors import Complaint, PluginError

if TYPE_CHECKING:
    from hooktrain.plugin.manager import PluginHost

__all__ = ["RecipeAlias", "aliases_of", "without_aliases"]


@attrs.frozen(kw_only=True)
class RecipeAlias:
    """A key that a recipe may have in place of another one, or names of a value in place of another one.

    Attributes:
        key: its path, such as ``deepspeed`` or ``data.sources[].type``; ``[]`` is every entry of a list.
        to: the path that it stands for, in the same section where ``key`` is in one.
        implies: values by path, such as a ``type`` at ``strategy.type``, that it sets where the recipe does not.
        values: our value for each of theirs; others are taken as they are.
        negated: whether true stands for false.
    """

    key: str
    to: str
    implies: Mapping[str, Any] = MappingProxyType({})
    values: Mapping[str, Any] = MappingProxyType({})
    negated: bool = False

    def value(self, given: Any) -> Any:
        """Our value for one of theirs."""
        if self.negated and isinstance(given, bool):
            return not given
        return self.values.get(given, given) if isinstance(given, str) else given


def aliases_of(host: PluginHost) -> list[RecipeAlias]:
    """Return the aliases that the plugins register.

    Raises:
        PluginError: a plugin registers something else.
    """
    found: list[RecipeAlias] = []
    for implementation in host.implementations("register_recipe_aliases"):
        register = cast(Callable[[], Iterable[Any] | None], implementation.function)
        for alias in register() or ():
            if not isinstance(alias, RecipeAlias):
                raise PluginError(
                    f"plugin '{implementation.plugin_name}', hook register_recipe_aliases: given {alias!r}, expected"
                    " hooktrain.RecipeAlias"
                )
            found.append(alias)
    return found


def without_aliases(
    raw: Mapping[str, Any], host: PluginHost, *, keep_conflicts: bool = False
) -> tuple[dict[str, Any], list[Complaint]]:
    """Return a recipe with our keys in place of aliases, and what is wrong with these.

    Args:
        raw: the recipe as it was read; it stays as it is.
        host: the plugins.
        keep_conflicts: whether an alias that is given together with its target stays in the recipe.
    """
    made, complaints = copy.deepcopy(dict(raw)), []
    for alias in aliases_of(host):
        *inside, key = alias.key.split(".")
        to = alias.to.split(".")
        for where, section in _sections(made, inside):
            if key not in section:
                continue
            if alias.key == alias.to:
                section[key] = alias.value(section[key])
                continue
            target = section if to[:-1] == inside else _opened(made, to[:-1])
            if to[-1] in target:
                complaints.append(
                    Complaint(f"{where}{key}", f"given together with '{alias.to}', which means the same; keep one")
                )
                if not keep_conflicts:
                    del section[key]
                continue
            target[to[-1]] = alias.value(section.pop(key))
            for path, value in alias.implies.items():
                *parents, last = path.split(".")
                _opened(made, parents).setdefault(last, value)
    return made, complaints


def _sections(target: Any, inside: list[str], where: str = "") -> Iterator[tuple[str, dict[Any, Any]]]:
    """Yield the mappings at a path, with its name for messages."""
    if not inside:
        if isinstance(target, dict):
            yield where, target
        return
    name, *rest = inside
    plain = name.removesuffix("[]")
    inner = target.get(plain) if isinstance(target, dict) else None
    if plain == name:
        yield from _sections(inner, rest, f"{where}{name}.")
    elif isinstance(inner, list):
        for at, each in enumerate(inner):
            yield from _sections(each, rest, f"{where}{plain}[{at}].")


def _opened(made: dict[str, Any], steps: list[str]) -> dict[str, Any]:
    """The section at a path as a mapping; one by its name alone becomes one with this type."""
    target = made
    for step in steps:
        inner = target.get(step)
        if not isinstance(inner, dict):
            inner = {"type": inner} if isinstance(inner, str) else {}
            target[step] = inner
        target = inner
    return target
