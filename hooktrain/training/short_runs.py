"""Recipes of short runs that try something out: without their own length, and without plugins that only observe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hooktrain.plugin.manager import PluginHost
from hooktrain.plugin.records import PluginRecord
from hooktrain.recipe.aliases import without_aliases

__all__ = ["LENGTH_KEYS", "passed_plugins", "without_observers"]

LENGTH_KEYS = ("epochs", "min_iterations", "exit_iteration", "exit_iteration_this_run", "max_time", "max_tokens")
"""Keys of a recipe that say how long it trains, besides ``train_iters``."""


def without_observers(host: PluginHost) -> tuple[dict[str, Any], list[str]]:
    """Return the recipe that was given, without the settings of plugins that only observe, and the words to block them.

    A tracker would follow a run that is none. What else ends a run early or saves it is left out as well.

    Args:
        host: the plugins of the recipe.
    """
    observers = _observers(host)
    settings = {part.partition("/")[2] for record in observers for part in record.registers}
    raw = dict(without_aliases(host.given_recipe, host)[0])
    raw = {key: value for key, value in raw.items() if key not in (*LENGTH_KEYS, *settings, "profile_hooks")}
    if isinstance(raw.get("plugins"), Mapping):  # a lock would refuse a run without the observers
        raw["plugins"] = {key: value for key, value in raw["plugins"].items() if key != "lock"}
    blocked = [f"no:{record.name}" for record in observers if record.version or record.name in host.config.load]
    return {**raw, "checkpoint": [], "eval_interval": 0, "eval_at_start": False}, [*host.switches.line, *blocked]


def passed_plugins(host: PluginHost) -> list[object]:
    """Return the plugins that were passed from Python and do more than observe."""
    records = [record for record in host.records.values() if not record.version and record.state == "active"]
    observers = _observers(host)
    found = [record for record in records if record.name not in host.config.load and record not in observers]
    return [host.manager.get_plugin(record.name) for record in found]


def _observers(host: PluginHost) -> list[PluginRecord]:
    found = (each for each in host.records.values() if each.info.only_observes)
    return [each for each in found if each.distribution != "hooktrain" or not each.version]  # none of the built-in ones
