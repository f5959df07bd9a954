"""Translating recipes in tests: the dialects, the plugins of this project, and the resolved recipe."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hooktrain import Dialect, Recipe, Translation
from hooktrain.plugin.manager import PluginHost
from hooktrain.recipe.commented_yaml import commented_yaml
from hooktrain.recipe.dialects import values_of
from hooktrain.recipe.resolver import resolve
from hooktrain.training.load import make_host

NOWHERE = Path("/nowhere")


@functools.cache
def host() -> PluginHost:
    """The installed plugins, loaded once."""
    return make_host()


def dialect(name: str) -> Dialect:
    found: Dialect = importlib.import_module(f"hooktrain_recipes.{name}").dialect()
    return found


def translated(name: str, recipe: str | Mapping[str, Any], folder: Path = NOWHERE) -> Translation:
    """The translation of a recipe, all of whose keys have been checked to be accounted for."""
    raw = yaml.safe_load(recipe) if isinstance(recipe, str) else recipe
    made = dialect(name).translate(raw, folder)
    if not made.not_a_recipe:
        check_account(raw, made)
    return made


def check_account(raw: Mapping[str, Any], made: Translation) -> None:
    """Every key has one entry, of its own or of what it lies in, and the commented recipe says the same."""
    entries = [*made.translated, *made.ignored, *made.unsupported]
    keys = [entry.key for entry in entries]
    assert len(keys) == len(set(keys)), "a key with two entries"
    for entry in entries:
        assert entry.to if hasattr(entry, "to") else entry.reason
    for path, value in values_of(raw).items():
        if not isinstance(value, (dict, list)) or not value:
            assert any(path == key or path.startswith((f"{key}.", f"{key}[")) for key in keys), path
    text = commented_yaml(made, raw, "a recipe")
    assert repr(yaml.safe_load(text) or {}) == repr(made.recipe), "repr, as NaN is not equal to itself"
    assert "follows from" not in text, "a line that comes from nowhere"


def resolved(made: Translation) -> dict[str, Any]:
    """The resolved recipe, with all defaults."""
    assert not made.unsupported
    recipe: Recipe = resolve(made.recipe, host())
    return recipe.as_dict()


def refusals(made: Translation) -> dict[str, str]:
    return {entry.key: entry.reason for entry in made.unsupported}
