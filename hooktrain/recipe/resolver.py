"""The recipe: what has been read is structured into frozen classes, with the parts that plugins register."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from hooktrain.config import Built, expected_keys, structure
from hooktrain.errors import Complaint, RecipeError, closest, did_you_mean
from hooktrain.plugin.config import plugins_config
from hooktrain.plugin.manager import PluginHost
from hooktrain.plugin.records import RegisteredPart
from hooktrain.protocols import ConfigDefaults, member
from hooktrain.recipe.aliases import without_aliases
from hooktrain.recipe.model import Recipe
from hooktrain.renamed import new_name
from hooktrain.types import ANY_TRAINER_TYPE, TrainerType

__all__ = ["default_types", "resolve"]


# ------------------------------------------------------------------------------------------- structuring


def resolve(raw: Mapping[str, Any], host: PluginHost, *, source: str = "recipe", name: str = "recipe") -> Recipe:
    """Structure a recipe with the parts that the plugins register; its ``plugins`` are the host's, switches applied.

    Args:
        raw: what :func:`read_recipe` returned, overrides applied.
        host: the plugins.
        source: what to call the recipe in errors.
        name: the recipe's name, from which ``run_dir`` is made when it is not given.

    Raises:
        RecipeError: with every complaint there is.
    """
    ours, complaints = without_aliases(raw, host)
    return _Resolver(ours, host, complaints).recipe(source, name)


def default_types(host: PluginHost) -> list[str]:
    """Return the trainer types that a recipe without ``type`` may be of."""
    return [name for name, (kind, _) in host.trainer_types.items() if kind.default]


class _Resolver:
    def __init__(self, raw: Mapping[str, Any], host: PluginHost, complaints: list[Complaint]) -> None:
        self.raw = raw
        self.host = host
        self.complaints = complaints
        self.types = {offer.config: offer.name for kinds in host.parts.values() for offer in kinds.values()}
        self.built: dict[str, Any] = {}
        self.lifted: list[str] = []
        self.type_name, self.trainer_type = "", TrainerType(parts={})

    def recipe(self, source: str, name: str) -> Recipe:
        type_name = self.raw.get("type") or self._default_type()
        if not isinstance(type_name, str) or type_name not in self.host.trainer_types:
            known = {n: who for n, (kind, who) in sorted(self.host.trainer_types.items()) if kind.listed}
            listed = ", ".join(f"{n} ({who.distribution})" for n, who in known.items())
            said = (
                f"given '{type_name}', which no plugin registers"
                if type_name
                else "given none, and none is the default"
            )
            self.complaints.append(
                Complaint(
                    "type",
                    f"{said}{new_name('type', str(type_name)) or did_you_mean(str(type_name), known)}; expected one of"
                    f" {listed or 'none, since no installed plugin registers a trainer type'}{self._left_out()}",
                )
            )
            type_name = closest(str(type_name), known) if type_name else ""
            if not type_name:
                raise RecipeError(self.complaints, source)
        self.type_name, self.trainer_type = type_name, self.host.trainer_types[type_name][0]
        own = {item.name: item for item in attrs.fields(Recipe) if not item.metadata.get("internal")}
        settings = self.host.parts.get("settings", {})
        given: dict[str, Any] = {"type": type_name}
        chosen: dict[str, Any] = {}
        for key in sorted(settings.keys() & own.keys()):
            why = f"{settings[key].plugin} registers settings under this key, which is the recipe's own; remove it with"
            self.complaints.append(Complaint(key, f"{why} plugins: {{block: [{settings[key].plugin.name}]}}"))
        for key, value in self.raw.items():
            if key in settings:
                shorthand = member(settings[key].config, ConfigDefaults, "shorthand")
                before = len(self.complaints)
                short = bool(shorthand) and isinstance(value, (list, str, bool))
                chosen[key] = self._mapping_part(settings[key], {shorthand: value} if short else value, key)
                if short:  # with the path that was written
                    found = self.complaints[before:]
                    self.complaints[before:] = [
                        one._replace(where=one.where.replace(f"{key}.{shorthand}", key, 1)) for one in found
                    ]
            elif key == "settings" or key in ("types", "name"):
                self.complaints.append(Complaint(str(key), "unknown key; a plugin's settings are top-level keys"))
            elif key in own and own[key].metadata.get("kind"):
                continue
            elif key in ("plugins", "code"):
                if "plugins" not in given:
                    given["plugins"] = Built(plugins_config(self.raw, self.complaints))
            elif key in own or any(key in item.metadata.get("aliases", ()) for item in own.values()):
                given[key] = value
            else:
                self.complaints.append(Complaint(str(key), self._unknown(str(key), own, settings)))
        for name_, offer in settings.items():
            if name_ not in chosen and not any(item.default is attrs.NOTHING for item in attrs.fields(offer.config)):
                chosen[name_] = offer.config()
        if self.raw.get("global_batch_size") is not None and self.raw.get("gradient_accumulation_steps") is not None:
            self.complaints.append(
                Complaint(
                    "gradient_accumulation_steps",
                    "given together with global_batch_size, from which it follows; keep one",
                )
            )
        for item in own.values():
            if item.metadata.get("kind"):
                given[item.name] = Built(self._field(item, self.raw.get(item.name), item.name))
        made = structure(Recipe, given, "", self.complaints)
        if made is None or self.complaints:
            raise RecipeError(self.complaints, source)
        # as the run has them: the recipe in its folder is to load them again without the switches of the command line
        return attrs.evolve(made, settings=chosen, types=self.types, name=name, plugins=self.host.config)

    def _default_type(self) -> str:
        """Return the trainer type of a recipe that names none; empty where no plugin has one.

        Raises:
            RecipeError: two plugins have one.
        """
        names = default_types(self.host)
        if len(names) > 1:
            listed = " and ".join(f"'{name}' of {self.host.trainer_types[name][1]}" for name in names)
            self.complaints.append(Complaint("type", f"given none, and {listed} are both the default; name one"))
            raise RecipeError(self.complaints, "recipe")
        return names[0] if names else ""

    # ------------------------------------------------------------------------------------------ parts

    def _field(self, item: Any, value: Any, where: str) -> Any:
        """The value of a field that holds one part or several."""
        kind = item.metadata["kind"]
        if not item.metadata["many"]:
            if where in self.built:
                return self.built[where]
            if value is None and not self._names(kind):
                return None
            self.built[where] = None  # stops two parts that inherit from each other
            self.built[where] = made = self._part(kind, value, where)
            return made
        values = [] if value is None else value if isinstance(value, list) else [value]
        made_all = [self._part(kind, each, f"{where}[{index}]") for index, each in enumerate(values)]
        return tuple(made for made in made_all if made is not None)

    def _part(self, kind: str, value: Any, where: str) -> Any:
        offers = self.host.parts.get(kind, {})
        names, written = self._names(kind), value if isinstance(value, str) else None
        if isinstance(value, str):
            default = offers.get(names[0]) if names else None
            shorthand = member(default.config, ConfigDefaults, "shorthand") if default is not None else None
            value = {shorthand: value} if shorthand and value not in offers else {"type": value}
        elif value is None:
            value = {}
        if not isinstance(value, Mapping):
            hint = _as_list(where, value, offers.get(names[0])) if names and isinstance(value, list) else ""
            expected = f"given {value!r}, expected a mapping with the keys of the {kind}{hint}"
            self.complaints.append(Complaint(where, expected))
            return None
        name = value.get("type", names[0] if names else None)
        offer = offers.get(name) if isinstance(name, str) else None
        if offer is None:
            known = {n: found for n, found in sorted(offers.items()) if found.listed}
            listed = ", ".join(f"{n} ({found.plugin.distribution})" for n, found in known.items())
            meant = new_name("type", str(name)) or did_you_mean(str(name), known)
            hint = (
                "" if meant or written is None else _as_list(where, [written], offers.get(names[0]) if names else None)
            )
            if hint:
                self.complaints.append(Complaint(where, f"given '{written}', expected a mapping{hint}"))
                return None
            said = (
                f"given '{name}', which no plugin registers"
                if "type" in value or names
                else "the trainer type has no default"
            )
            self.complaints.append(
                Complaint(f"{where}.type", f"{said}{meant}; registered are {listed or 'none'}{self._left_out()}")
            )
            return None
        if not self._compatible(offer, names):
            self.complaints.append(
                Complaint(
                    f"{where}.type",
                    f"given '{name}' ({offer.plugin.distribution}), which the trainer type"
                    f" '{self.type_name}' does not support; it supports"
                    f" {', '.join(n for n in names if n != '*') or f'no {kind}'}; to use it anyway, write"
                    " skip_validation: true",
                )
            )
            return None
        return self._mapping_part(offer, {key: each for key, each in value.items() if key != "type"}, where)

    def _mapping_part(self, offer: RegisteredPart, value: Any, where: str) -> Any:
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            self.complaints.append(Complaint(where, f"given {value!r}, expected a mapping"))
            return None
        given = dict(value)
        whole: dict[str, bool] = {}  # of a part that several keys inherit from, the first decides for the others
        for item in attrs.fields(offer.config):
            if item.metadata.get("kind") and (item.name in given or not item.metadata["many"]):
                given[item.name] = Built(self._field(item, given.get(item.name), f"{where}.{item.name}"))
            inherit = item.metadata.get("inherit")
            spelled = {item.name, *item.metadata.get("aliases", ())}
            if inherit:
                found, inherited = self._lookup(inherit)
                own = spelled & set(given)
                from_part = inherit.rpartition(".")[0]
                if found and not own and whole.get(from_part, True):
                    given[item.name] = inherited
                same = not own or (found and given[own.pop()] == inherited.value)
                whole.setdefault(from_part, same)
        whose = f" ({offer.kind} '{offer.name}' of {offer.plugin})"
        return structure(offer.config, given, where, self.complaints, whose, self._elsewhere)

    def _lookup(self, path: str) -> tuple[bool, Built]:
        """The value at a path of the recipe, whose first step is a part that may have to be built first."""
        head, *rest = path.split(".")
        item = getattr(attrs.fields(Recipe), head)
        value = self._field(item, self.raw.get(head), head) if item.metadata.get("kind") else self.raw.get(head)
        for step in rest:
            if not hasattr(value, step):
                return False, Built(None)
            value = getattr(value, step)
        return value is not None, Built(value)

    def _names(self, kind: str) -> Sequence[str]:
        return self.trainer_type.parts.get(kind, ())

    def _compatible(self, offer: RegisteredPart, names: Sequence[str]) -> bool:
        if self.raw.get("skip_validation") is True:
            return True
        supports = member(offer.config, ConfigDefaults, "trainer_types")
        is_free = offer.kind in ANY_TRAINER_TYPE and not names
        return is_free or any(n in supports for n in ("*", self.type_name)) or offer.name in names or "*" in names

    def _unknown(self, key: str, own: Iterable[str], settings: Iterable[str]) -> str:
        record = self.host.records.get(key)
        if record is not None and record.reason:
            return (
                f"the plugin of that name is not loaded ({record.reason}), so that nobody takes this key; let it take"
                " part, or leave the key out"
            )
        keys = [name for name in own if name != "settings"] + list(settings)
        meant = new_name("recipe key", key) or self._elsewhere(key) or did_you_mean(key, keys)
        return f"unknown key{meant}{expected_keys('a recipe', keys, bool(meant))}{self._left_out()}"

    def _elsewhere(self, key: str) -> str:
        """Return which sections of this recipe have a key, to be appended to an error about it; or nothing."""
        configs: dict[str, Any] = {
            "": Recipe,
            **{n: each.config for n, each in self.host.parts.get("settings", {}).items()},
        }
        for item in attrs.fields(Recipe):
            kind = item.metadata.get("kind")
            if kind and not item.metadata["many"]:
                value, offers = self.raw.get(item.name), self.host.parts.get(kind, {})
                name = value.get("type") if isinstance(value, Mapping) else value
                offer = offers.get(name if isinstance(name, str) else "") or offers.get(
                    next(iter(self._names(kind)), "")
                )
                configs |= {} if offer is None else {item.name: offer.config}
        found = [
            f"{section}.{item.name}".lstrip(".")
            for section, config in configs.items()
            for item in attrs.fields(config)
            if key in (item.name, *item.metadata.get("aliases", ())) and not item.metadata.get("internal")
        ]
        return f" (did you mean {' or '.join(map(repr, found[:3]))}?)" if found else ""

    def _left_out(self) -> str:
        """Plugins that might have offered what is not there: nobody knows what one offers that was not imported."""
        failed = "; ".join(f"{record} {record.reason}" for record in self.host.failed())
        reasons: dict[str, list[str]] = {}
        for record in self.host.records.values():
            if record.state == "blocked":
                reasons.setdefault(record.reason, []).append(record.name)
        blocked = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in reasons.items())
        return (f"; not loaded: {failed}" if failed else "") + (f"; not looked at: {blocked}" if blocked else "")


def _as_list(where: str, values: Sequence[Any], default: RegisteredPart | None) -> str:
    """Return the advice to write parts under the key of the default config that holds several, such as sources."""
    fields = attrs.fields(default.config) if default is not None else ()
    key = next((item.name for item in fields if item.metadata.get("kind") and item.metadata["many"]), "")
    listed = ", ".join(map(str, values))
    return f"; write `{where}: {{{key}: [{listed}]}}`" if key else ""
