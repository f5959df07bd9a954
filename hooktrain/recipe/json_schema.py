"""``hooktrain schema``: what a recipe may say with the installed plugins, as a JSON Schema that editors understand."""

from __future__ import annotations

import ast
import collections.abc
import functools
import inspect
import itertools
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import attrs

from hooktrain.compat import factory_of, rules_of, validators_in
from hooktrain.config import NUMBER, BatchSize, Bytes, Seconds, unstructure
from hooktrain.plugin.config import PluginsConfig
from hooktrain.plugin.manager import PluginHost
from hooktrain.plugin.records import RegisteredPart
from hooktrain.protocols import ConfigDefaults, member
from hooktrain.recipe.aliases import aliases_of
from hooktrain.recipe.model import Recipe
from hooktrain.recipe.resolver import default_types

__all__ = ["field_docs", "schema_of"]

Schema = dict[str, Any]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TEXTS = {int: "[kKMB]", float: "[kKMB%]", Seconds: "[smhd]", Bytes: "([kKMGT]i?)?B"}
"""Units that numbers may have as text; without one, YAML 1.1 reads 1e-4 as text."""
_NOT_KEYS = ("settings",)


def schema_of(host: PluginHost) -> Schema:
    """The JSON Schema (draft 2020-12) of recipes, with everything that the plugins register.

    It refuses what the strict reader refuses, as far as JSON Schema can say it: what validators of several fields,
    ``check_recipe`` and files say is left to `hooktrain plan`.
    """
    return _Maker(host).recipe()


class _Maker:
    def __init__(self, host: PluginHost) -> None:
        self.host = host
        self.definitions: dict[str, Schema] = {}
        self.own = [
            item for item in attrs.fields(Recipe) if item.name not in _NOT_KEYS and not item.metadata.get("internal")
        ]
        attrs.resolve_types(Recipe)
        self.type_names: dict[str, Any] = {
            name: found for name, (found, _) in sorted(host.trainer_types.items()) if found.listed
        }
        self.trainer_type = ""
        self.lifted = False
        self.aliases = aliases_of(host)

    def recipe(self) -> Schema:
        docs = field_docs(Recipe)
        properties: dict[str, Schema] = {}
        exclusive: list[Schema] = []
        for item in self.own:
            if item.metadata.get("kind"):
                properties[item.name] = {"description": f"The {item.name} of the run; its `type` says which."}
                continue
            made = self._field(item, docs.get(item.name, ""))
            if item.type is PluginsConfig:
                made = {**self._config(PluginsConfig, "plugins"), **made}
            for key in (item.name, *item.metadata.get("aliases", ())):
                properties[key] = made
            exclusive += _exclusive(item)
        properties["code"] = {
            "type": "string",
            "description": "A Python file with plugins, one more of `plugins.load`.",
        }
        for alias in self.aliases:
            if "." not in alias.key:
                properties[alias.key] = {"description": f"The same as `{alias.to}`."}
        summaries = [f"{name}: {found.summary}" for name, found in self.type_names.items()]
        properties["type"] = {**properties["type"], "enum": list(self.type_names)} if self.type_names else {}
        properties["type"]["description"] = "; ".join([docs["type"], *summaries])
        for name, offer in sorted(self.host.parts.get("settings", {}).items()):
            properties[name] = self._settings(offer)
        rules = [rule for name in self.type_names for rule in self._of_trainer_type(name)]
        return {
            "$schema": _DIALECT,
            "title": "hooktrain recipe",
            "type": "object",
            "properties": properties,
            "additionalProperties": False,
            "allOf": [*exclusive, *rules],
            "$defs": self.definitions,
        }

    def _of_trainer_type(self, name: str) -> Iterator[Schema]:
        """Yield the parts that a recipe of one trainer type may have, with ``skip_validation`` and without."""
        is_it: Schema = {"properties": {"type": {"const": name}}}
        if [name] != default_types(self.host):
            is_it["required"] = ["type"]
        lifts = {"properties": {"skip_validation": {"const": True}}, "required": ["skip_validation"]}
        for condition, lifted in ((lifts, True), ({"not": lifts}, False)):
            self.trainer_type, self.lifted = name, lifted
            parts = [item for item in self.own if item.metadata.get("kind")]
            then: Schema = {"properties": {item.name: self._part_field(item) for item in parts}}
            required = [item.name for item in parts if not item.metadata["many"] and self._is_needed(item.name)]
            if required:
                then["required"] = required
            yield {"if": {"allOf": [is_it, condition]}, "then": then}

    # ------------------------------------------------------------------------------------------------ parts

    def _names(self, kind: str) -> Sequence[str]:
        found: Sequence[str] = self.type_names[self.trainer_type].parts.get(kind, ())
        return found

    def _compatible(self, kind: str) -> list[RegisteredPart]:
        """As the resolver of recipes has it, the default first."""
        names = self._names(kind)
        offers = self.host.parts.get(kind, {})
        fit = [
            offer
            for name, offer in offers.items()
            if offer.listed
            and (
                self.lifted
                or name in names
                or "*" in names
                or self.trainer_type in member(offer.config, ConfigDefaults, "trainer_types")
            )
        ]
        return sorted(fit, key=lambda offer: (offer.name != next(iter(names), None), offer.name))

    def _is_needed(self, kind: str) -> bool:
        """Whether the default part has keys that must be given."""
        names = self._names(kind)
        offer = self.host.parts.get(kind, {}).get(names[0]) if names else None
        return offer is not None and bool(_required(offer.config))

    def _part_field(self, item: Any) -> Schema:
        one = self._part(item.metadata["kind"])
        if not item.metadata["many"]:
            return one
        return {"anyOf": [{"type": "array", "items": one}, one, {"type": "null"}]}

    def _part(self, kind: str) -> Schema:
        names, offers = self._names(kind), self._compatible(kind)
        default = next((offer for offer in offers if names and offer.name == names[0]), None)
        choices: list[Schema] = []
        for offer in offers:
            reference = self._config(offer.config, f"{kind}-{offer.name}", offer)
            choices.append(reference if offer is default else {"allOf": [reference, {"required": ["type"]}]})
        by_name = [offer.name for offer in offers if not _required(offer.config)]
        shorthand = member(default.config, ConfigDefaults, "shorthand") if default is not None else None
        if shorthand:
            choices.append({"type": "string", "description": f"Short for {shorthand}."})
        elif by_name:
            choices.append({"enum": by_name})
        if default is None or not _required(default.config):
            choices.append({"type": "null"})
        return {"anyOf": choices}

    def _settings(self, offer: RegisteredPart) -> Schema:
        reference = self._config(offer.config, f"settings-{offer.name}", offer)
        choices = [reference] if _required(offer.config) else [reference, {"type": "null"}]
        shorthand = member(offer.config, ConfigDefaults, "shorthand")
        if shorthand:
            is_switch = attrs.fields_dict(offer.config)[shorthand].type is bool
            choices += [{"type": "boolean"}] if is_switch else [{"type": "array"}, {"type": "string"}]
        return {"anyOf": choices, "description": _about(offer.config, offer)}

    # ---------------------------------------------------------------------------------------------- configs

    def _config(self, config: Any, name: str, offer: RegisteredPart | None = None) -> Schema:
        """A reference to the definition of a config class, which is made when it is first asked for."""
        attrs.resolve_types(config)
        nested = any(item.metadata.get("kind") for item in attrs.fields(config))
        key = f"{self.trainer_type}{'-any' * self.lifted}-{name}" if nested else name
        reference = {"$ref": f"#/$defs/{key}"}
        if key in self.definitions:
            return reference
        self.definitions[key] = {}  # stops configs that hold each other
        docs = field_docs(config)
        properties: dict[str, Schema] = {}
        exclusive: list[Schema] = []
        if offer is not None and offer.kind != "settings":
            properties["type"] = {"const": offer.name, "description": _about(config, offer)}
        for item in attrs.fields(config):
            if not item.init:
                continue
            made = self._field(item, docs.get(item.name, ""))
            for spelled in (item.name, *item.metadata.get("aliases", ())):
                properties[spelled] = made
            exclusive += _exclusive(item)
        for alias in self.aliases:
            section, _, spelled = alias.key.rpartition(".")
            kinds = {"data.sources[]": "source", "data.eval_sources[]": "source"}
            if offer is None or kinds.get(section, section) != offer.kind:
                continue
            if alias.key == alias.to:
                names = [offer.name, *(theirs for theirs, ours in alias.values.items() if ours == offer.name)]
                properties[spelled] = {"enum": names, "description": properties[spelled]["description"]}
            else:
                properties[spelled] = {"description": f"The same as `{alias.to}`."}
                exclusive.append({"not": {"required": [spelled, alias.to.rpartition(".")[2]]}})
        definition: Schema = {
            "type": "object",
            "description": _about(config, offer),
            "properties": properties,
            "additionalProperties": False,
        }
        required = [each for each in _required(config) if not _spellings(config, each)]
        if required:
            definition["required"] = required
        others = [_spellings(config, each) for each in _required(config) if _spellings(config, each)]
        exclusive += [{"anyOf": [{"required": [key]} for key in spellings]} for spellings in others]
        if exclusive:
            definition["allOf"] = exclusive
        self.definitions[key] = definition
        return reference

    def _field(self, item: Any, description: str) -> Schema:
        made: Schema = self._part_field(item) if item.metadata.get("kind") else self._type(item.type)
        for rule in _rules(item.validator):
            made = {**made, **rule}
        if item.default is not attrs.NOTHING and not item.metadata.get("kind"):
            factory = factory_of(item.default)
            default = unstructure(factory() if factory else item.default)
            if not isinstance(factory, type) or not attrs.has(factory):
                made["default"] = default
        said = [description] if description else []
        if item.metadata.get("inherit"):
            said.append(f"When omitted, it is {item.metadata['inherit']} of the recipe.")
        return {**made, "description": " ".join(said)} if said else made

    def _type(self, target: Any) -> Schema:
        """Return the JSON Schema of a type as the reader takes it."""
        plain: dict[Any, Schema] = {
            str: {"type": "string"},
            Path: {"type": "string"},
            bool: {"type": "boolean"},
            **{kind: _number(kind) for kind in _TEXTS},
            BatchSize: {"anyOf": [*_number(int)["anyOf"], {"const": "auto"}], "minimum": 1},
            type(None): {"type": "null"},
        }
        if target in plain:
            return plain[target]
        origin, members = get_origin(target), get_args(target)
        if origin in (Union, types.UnionType):
            return {"anyOf": [self._type(member) for member in members]}
        if origin is Literal:
            return {"enum": list(members)}
        if target in (list, tuple) or origin in (list, tuple, collections.abc.Sequence):
            if origin is tuple and members and members[-1] is not Ellipsis:
                size = len(members)
                places = [self._type(member) for member in members]
                return {"type": "array", "prefixItems": places, "minItems": size, "maxItems": size}
            return {"type": "array", "items": self._type(members[0])} if members else {"type": "array"}
        if target is dict or origin in (dict, collections.abc.Mapping):
            return {"type": "object", "additionalProperties": self._type(members[1])} if members else {"type": "object"}
        if attrs.has(target):
            return self._config(target, target.__name__)
        return {}


# ------------------------------------------------------------------------------------------------------ looking


def _number(kind: Any) -> Schema:
    pattern = rf"^\s*{NUMBER.pattern}\s*{_TEXTS[kind]}?\s*$"
    return {"anyOf": [{"type": "integer" if kind is int else "number"}, {"type": "string", "pattern": pattern}]}


def _required(config: Any) -> list[str]:
    """Fields that a recipe must give: without a default, and inherited from nowhere."""
    return [
        item.name
        for item in attrs.fields(config)
        if item.init
        and item.default is attrs.NOTHING
        and not item.metadata.get("inherit")
        and not item.metadata.get("kind")
    ]


def _spellings(config: Any, name: str) -> list[str]:
    """All keys of a field that has aliases."""
    aliases = getattr(attrs.fields(config), name).metadata.get("aliases", ())
    return [name, *aliases] if aliases else []


def _exclusive(item: Any) -> list[Schema]:
    """A field may be given under one of its keys only."""
    keys = (item.name, *item.metadata.get("aliases", ()))
    return [{"not": {"required": list(pair)}} for pair in itertools.combinations(keys, 2)]


def _rules(validator: Any) -> Iterator[Schema]:
    """Yield the JSON Schema of validators of :mod:`hooktrain.config`; they may stand in a list."""
    for each in validators_in(validator):
        found = rules_of(each)
        if isinstance(found, Mapping):
            yield dict(found)


def _about(config: Any, offer: RegisteredPart | None) -> str:
    text = " ".join((inspect.getdoc(config) or "").partition("\n\n")[0].split())
    return text if offer is None else f"{text} From {offer.plugin}.".strip()


@functools.lru_cache(maxsize=256)
def field_docs(config: type) -> Mapping[str, str]:
    """The docstrings below the fields of a class and of those that it inherits from, each on one line.

    Python does not keep them, so that they are read from the source; where there is none, nothing is known.
    """
    found: dict[str, str] = {}
    for owner in reversed(config.__mro__):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
        except (OSError, TypeError, SyntaxError):
            continue
        body = next((node.body for node in tree.body if isinstance(node, ast.ClassDef)), [])
        for field, below in itertools.pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            ):
                found[field.target.id] = " ".join(below.value.value.split()).replace("``", "`")
    return types.MappingProxyType(found)
