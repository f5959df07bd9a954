"""Experiment trackers in recipes of other programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hooktrain import Collector
from hooktrain_recipes.reasons import TRACKER

__all__ = ["KNOWN", "add_tracker", "add_trackers"]

KNOWN = ("tensorboard", "wandb", "mlflow", "trackio", "swanlab")
"""Trackers that hooktrain has by name."""


def add_tracker(found: Collector, keys: Iterable[str], name: str, settings: Mapping[str, str]) -> None:
    """Add a tracker.

    Args:
        found: the translation.
        keys: the keys that ask for it.
        name: of the tracker.
        settings: keys of the original with the names that its package has for them.
    """
    given = {theirs: found.get(key) for key, theirs in settings.items() if found.get(key) not in (None, "")}
    place = f"trackers[{len(found.recipe.get('trackers', []))}]"
    found.set(place, {"type": name, **given})
    for key in keys:
        found.translated(key, f"{place}.type")
    for key, theirs in settings.items():
        if theirs in given and found.get(key) == given[theirs]:
            found.translated(key, f"{place}.{theirs}")


def add_trackers(found: Collector, key: str, settings: Mapping[str, Mapping[str, str]]) -> None:
    """Add the trackers that a key lists, each with its settings; those that hooktrain does not have are refused."""
    given = found.get(key)
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        found.unsupported(key, "expected names of trackers", "write a list of names")
        return
    if others := [name for name in names if name not in (*KNOWN, "none")]:
        TRACKER.refuse(found, key, ", ".join(others))
        return
    for name in dict.fromkeys(names):
        if name != "none":
            add_tracker(found, [key], name, settings.get(name, {}))
    if not found.accounted(key):
        found.ignored(key, "no tracker")
