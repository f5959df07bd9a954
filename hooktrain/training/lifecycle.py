"""The beginning of a run: a recipe with the objects alongside it, and the choice of an engine that exports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from hooktrain.config import local_path
from hooktrain.errors import CheckpointError, RecipeError, did_you_mean
from hooktrain.plugin.manager import PluginHost
from hooktrain.protocols import ConfigDefaults, member
from hooktrain.recipe.model import Recipe
from hooktrain.recipe.yaml_reader import read_recipe
from hooktrain.training.load import load
from hooktrain.training.python_arguments import needs_tokenizer, settle
from hooktrain.training.python_parts import PythonParts

__all__ = ["NO_RECIPE", "checkpoint_path", "export_config", "save_folder", "structured"]

NO_RECIPE: Mapping[str, Any] = MappingProxyType({})


def export_config(host: PluginHost, name: str | None) -> type:
    """Return the config class of a checkpoint engine by name, or of the one that exports for other programs.

    Raises:
        CheckpointError: there is no such engine.
    """
    engines = host.parts.get("checkpoint", {})
    exports = [each for each, part in engines.items() if member(part.config, ConfigDefaults, "exports")]
    name = name or (exports[0] if exports else None)
    if name is None or name not in engines:
        meant = did_you_mean(str(name), engines)
        given = (
            f"given '{name}', which no plugin registers{meant}" if name else "no installed plugin registers an export"
        )
        raise CheckpointError(f"save: {given}; expected type= to be one of {', '.join(sorted(engines)) or 'none'}")
    return engines[name].config


def save_folder(path: Path | str) -> Path:
    """Return the absolute path of a folder to save to.

    Raises:
        CheckpointError: it is a URL.
    """
    return checkpoint_path(path, "save").absolute()


def checkpoint_path(path: Path | str, where: str) -> Path:
    """Return the path of a checkpoint; ``where`` says for errors what it was given for.

    Raises:
        CheckpointError: it is a URL.
    """
    try:
        return local_path(path)
    except ValueError as problem:
        raise CheckpointError(f"{where}: {problem}") from None


def structured(
    recipe: Mapping[str, Any] | Path | str,
    objects: Mapping[str, Any],
    plugins: Sequence[object],
    switches: Sequence[str],
    overrides: Sequence[str],
) -> tuple[Recipe, PluginHost]:
    """Return a recipe and the plugins, with the objects passed from Python put in their places."""
    if isinstance(plugins, (str, bytes)) or not isinstance(plugins, Sequence):
        raise TypeError(f"Trainer: plugins is {plugins!r}, expected a list of objects, as in plugins=[MyPlugin()]")
    path = Path(recipe).expanduser() if isinstance(recipe, (str, Path)) else None
    if path is None and not isinstance(recipe, Mapping):
        raise TypeError(f"Trainer: recipe is a {recipe.__class__.__name__}, expected a mapping, or a file's path")
    parts = PythonParts()
    raw = settle(read_recipe(path) if path else cast("Mapping[str, Any]", recipe), parts, objects)
    try:
        return load(
            raw,
            overrides=list(overrides),
            switches=list(switches),
            plugins=list(plugins),
            python_parts=parts,
            source=str(path) if path else "recipe",
            name=path.stem if path else "recipe",
        )
    except RecipeError as problem:
        raise needs_tokenizer(problem, objects) or problem from None
