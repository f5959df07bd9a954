"""Which plugins a recipe uses: those that it does not use take no part in its run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import attrs

from hooktrain.errors import PluginError

if TYPE_CHECKING:
    from hooktrain.plugin.manager import PluginHost
    from hooktrain.plugin.records import PluginRecord
    from hooktrain.recipe.model import Recipe

__all__ = ["asks_for", "chosen_configs", "leave_out_unused"]


def leave_out_unused(host: PluginHost, recipe: Recipe) -> None:
    """Take out the plugins whose ``PluginInfo.active_when`` says that a recipe does not use them.

    A plugin of which the recipe chooses a part or the trainer type is used, whatever it says.

    Raises:
        PluginError: an ``active_when`` raises, or returns something else than a bool.
    """
    for record in host.records.values():
        if record.state != "active" or record.info.active_when is None:
            continue
        if not (_is_chosen(host, recipe, record) or _says_used(record, recipe)):
            host.leave_out(record, "this recipe does not use it: its active_when returned False")
    host.hooks.refresh()


def asks_for(host: PluginHost, recipe: Recipe, record: PluginRecord) -> bool:
    """Whether a recipe asks for anything of an active plugin.

    One that does not say so by its ``active_when`` is judged by what it registers: whether a part or the trainer type
    is chosen, or settings are not those by default. One that registers nothing takes part in every run.
    """
    if record.info.active_when is not None or not record.registers or _is_chosen(host, recipe, record):
        return True
    own = [name for name, each in host.parts.get("settings", {}).items() if each.plugin is record]
    return any(name in recipe.settings and recipe.settings[name] != _default(recipe.settings[name]) for name in own)


def _is_chosen(host: PluginHost, recipe: Recipe, record: PluginRecord) -> bool:
    trainer_type = host.trainer_types.get(recipe.type)
    if trainer_type is not None and trainer_type[1] is record:
        return True
    parts = {each.config for kinds in host.parts.values() for each in kinds.values() if each.plugin is record}
    return any(type(config) in parts for config in chosen_configs(recipe))


def _default(settings: Any) -> Any:
    try:
        return type(settings)()
    except (TypeError, ValueError):  # has keys that must be given
        return None


def _says_used(record: PluginRecord, recipe: Recipe) -> bool:
    active_when = record.info.active_when
    assert active_when is not None
    try:
        answer = active_when(recipe)
    except Exception as problem:
        raise PluginError(f"{record}, active_when: {type(problem).__name__}: {problem}") from problem
    if not isinstance(answer, bool):
        raise PluginError(f"{record}, active_when: returned {answer!r}, expected True or False")
    return answer


def chosen_configs(recipe: Recipe) -> Iterator[Any]:
    """The configs of all parts that a recipe chooses, those within other parts included; settings are none."""
    yield from _configs(recipe)


def _configs(within: Any) -> Iterator[Any]:
    for item in attrs.fields(type(within)):
        if not item.metadata.get("kind"):
            continue
        value = getattr(within, item.name)
        for config in value if isinstance(value, tuple) else (value,):
            if attrs.has(type(config)):
                yield config
                yield from _configs(config)
