"""Origin of each value of a resolved recipe: the file, the command line, the environment, or a default."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import yaml

from hooktrain.masking import mask_words
from hooktrain.plugin.config import PluginsConfig
from hooktrain.plugin.manager import PluginHost
from hooktrain.protocols import ConfigDefaults, member
from hooktrain.recipe.model import Recipe
from hooktrain.recipe.yaml_reader import recipe_files

__all__ = ["Sources", "origins_of"]

_MERGE = "tag:yaml.org,2002:merge"
Place = tuple[str, ...]
"""A path in the raw recipe: keys, and numbers of list entries as text."""


@attrs.frozen(kw_only=True)
class Sources:
    """Sources of a recipe.

    Attributes:
        file: the recipe's file, or None when it was given in Python.
        raw: its keys and values, overrides applied.
        overrides: the words of the command line, ``key=value``.
        switches: its words for plugins.
        translated: whether the file is another program's, so that its lines have other keys.
    """

    file: Path | None
    raw: Mapping[str, Any]
    overrides: Sequence[str] = ()
    switches: Sequence[str] = ()
    translated: bool = False

    def origin(self, place: Place, lines: Mapping[Place, str]) -> str:
        """Return who wrote the value at a place of the raw recipe."""
        for word in reversed(self.overrides):
            path = tuple(word.partition("=")[0].split("."))
            if place[: len(path)] == path or path[: len(place)] == place:
                return f"command line -o {mask_words([word])[0]}"
        if self.file is None:
            return "given in Python"
        if self.translated:
            return f"{self.file.name}, translated"
        for length in range(len(place), 0, -1):  # a merged or short form stands where its parent does
            if place[:length] in lines:
                return lines[place[:length]]
        return self.file.name


def origins_of(recipe: Recipe, host: PluginHost, sources: Sources) -> dict[str, str]:
    """The origin of every value of ``recipe.as_dict()`` by its path, such as ``checkpoint[0].type``.

    Lists and mappings that are no parts count as one value.
    """
    return dict(_Walk(recipe, host, sources).all())


class _Walk:
    def __init__(self, recipe: Recipe, host: PluginHost, sources: Sources) -> None:
        self.recipe, self.host, self.sources = recipe, host, sources
        self.lines: dict[Place, str] = {}
        if sources.file is not None and not sources.translated:
            for file in reversed(recipe_files(sources.file)):  # what is written on top wins
                self.lines |= {place: f"{file.name}:{line}" for place, line in _lines(file).items()}
        self.owners = {offer.config: offer for kinds in host.parts.values() for offer in kinds.values()}
        self.plain = recipe.as_dict()

    def all(self) -> Iterator[tuple[str, str]]:
        raw = self.sources.raw
        for item in attrs.fields(Recipe):
            if item.name in ("settings", "types", "name") or item.name not in self.plain:
                continue
            value = getattr(self.recipe, item.name)
            if item.name == "plugins":
                yield from self._plugins()
            elif item.metadata.get("kind"):
                yield from self._parts(item, value, raw.get(item.name), item.name, (item.name,))
            else:
                spelled = _spelled(item, raw)
                left_out = "default" if item.name != "type" else f"default of {self.host.trainer_types[value][1]}"
                yield item.name, self.sources.origin((spelled,), self.lines) if spelled else left_out
        for name, config in self.recipe.settings.items():
            given = raw.get(name)
            shorthand = member(type(config), ConfigDefaults, "shorthand")
            if shorthand and isinstance(given, (list, str, bool)):
                yield from self._fields(config, {}, name, (name,), {shorthand: (name,)})
            else:
                yield from self._fields(config, given if isinstance(given, Mapping) else {}, name, (name,))

    def _parts(self, item: Any, value: Any, given: Any, path: str, place: Place) -> Iterator[tuple[str, str]]:
        if not item.metadata["many"]:
            if value is not None:
                yield from self._part(value, given, path, place)
            return
        if not value:
            written = self.sources.origin(place, self.lines) if given is not None else "default"
            yield path, written
            return
        entries = given if isinstance(given, list) else [given]
        for number, (config, entry) in enumerate(zip(value, entries, strict=False)):
            inside = (*place, str(number)) if isinstance(given, list) else place
            yield from self._part(config, entry, f"{path}[{number}]", inside)

    def _part(self, config: Any, given: Any, path: str, place: Place) -> Iterator[tuple[str, str]]:
        """The ``type`` of a part, and its fields; a text stands for a type or for the field of the shorthand."""
        name = self.recipe.types.get(type(config), "")
        written: dict[str, Place] = {}
        if isinstance(given, str):
            shorthand = member(type(config), ConfigDefaults, "shorthand")
            written = {"type": place} if given == name or not shorthand else {shorthand: place}
        mapping = given if isinstance(given, Mapping) else {}
        if "type" in mapping:
            written["type"] = (*place, "type")
        yield (
            f"{path}.type",
            self.sources.origin(written["type"], self.lines)
            if "type" in written
            else f"trainer type {self.recipe.type}",
        )
        yield from self._fields(config, mapping, path, place, written)

    def _fields(
        self,
        config: Any,
        given: Mapping[str, Any],
        path: str,
        place: Place,
        written: Mapping[str, Place] = {},
    ) -> Iterator[tuple[str, str]]:
        offer = self.owners.get(type(config))
        default = f"default of {offer.plugin.distribution}" if offer else "default"
        for item in attrs.fields(type(config)):
            value, where = getattr(config, item.name), f"{path}.{item.name}"
            spelled = _spelled(item, given)
            if item.metadata.get("kind"):
                inside = (*place, item.name)
                yield from self._parts(item, value, given.get(item.name), where, inside)
            elif item.name in written:
                yield where, self.sources.origin(written[item.name], self.lines)
            elif spelled:
                yield where, self.sources.origin((*place, spelled), self.lines)
            elif item.metadata.get("inherit") and self._inherits(item, value):
                yield where, f"inherited from {item.metadata['inherit']}"
            else:
                yield where, default

    def _inherits(self, item: Any, value: Any) -> bool:
        found: Any = self.recipe
        for step in item.metadata["inherit"].split("."):
            found = getattr(found, step, None)
        return found is not None and found == value

    def _plugins(self) -> Iterator[tuple[str, str]]:
        """Switches of environment and command line change what the recipe says."""
        environment = PluginsConfig().switched(os.environ.get("HOOKTRAIN_PLUGINS", "").split(","))
        line = PluginsConfig().switched(self.sources.switches)
        given = self.sources.raw.get("plugins") or {}
        for item in attrs.fields(PluginsConfig):
            default = getattr(PluginsConfig(), item.name)
            said = []
            if item.name in given:
                said.append(self.sources.origin(("plugins", item.name), self.lines))
            if getattr(environment, item.name) != default:
                said.append("environment HOOKTRAIN_PLUGINS")
            if getattr(line, item.name) != default:
                said.append("command line -p")
            yield f"plugins.{item.name}", " and ".join(said) or "default"


def _spelled(item: Any, given: Mapping[str, Any]) -> str | None:
    """The key under which a field was given."""
    return next((key for key in (item.name, *item.metadata.get("aliases", ())) if key in given), None)


def _lines(file: Path) -> dict[Place, int]:
    """The line of each key and list entry of a YAML file, from 1."""
    with file.open(encoding="utf-8") as opened:
        root = yaml.compose(opened, Loader=yaml.SafeLoader)
    found: dict[Place, int] = {}

    def visit(node: yaml.Node | None, place: Place) -> None:
        if isinstance(node, yaml.MappingNode):
            merges_first = sorted(
                node.value, key=lambda pair: pair[0].tag != _MERGE
            )  # what is written beside them wins
            for key, value in merges_first:
                if key.tag == _MERGE:
                    for merged in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                        visit(merged, place)
                    continue
                inside = (*place, str(key.value))
                found[inside] = key.start_mark.line + 1
                visit(value, inside)
        elif isinstance(node, yaml.SequenceNode):
            for number, entry in enumerate(node.value):
                inside = (*place, str(number))
                found[inside] = entry.start_mark.line + 1
                visit(entry, inside)

    visit(root, ())
    return found
