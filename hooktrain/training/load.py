"""From a recipe to a checked one and its plugins, with nothing built yet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from hooktrain.errors import PluginError, RecipeError
from hooktrain.plugin.checking import check_installed, check_used, problems_of
from hooktrain.plugin.config import PluginsConfig, Switches, plugins_config
from hooktrain.plugin.dependencies import logit_complaints
from hooktrain.plugin.manager import PluginHost
from hooktrain.plugin.ordering import complaint_of
from hooktrain.recipe.model import Recipe
from hooktrain.recipe.resolver import resolve
from hooktrain.recipe.yaml_reader import apply_overrides, masked_values, read_recipe
from hooktrain.training.diagnostics import explain
from hooktrain.types import World

if TYPE_CHECKING:
    from hooktrain.training.python_parts import PythonParts

__all__ = ["DEFAULT_PLUGINS", "load", "make_host"]

DEFAULT_PLUGINS = {
    "loop": "hooktrain.training.default_loop:Loop",
    "console": "hooktrain.builtins.console:Console",
    "jsonl": "hooktrain.builtins.jsonl:JsonLines",
    "signals": "hooktrain.builtins.signals:Signals",
    "time_limit": "hooktrain.builtins.time_limit:TimeLimit",
    "measure": "hooktrain.builtins.measure:Measure",
    "profiler": "hooktrain.builtins.torch_profiler:TorchProfiler",
    "python_parts": "hooktrain.training.python_parts:PythonParts",
}
"""The built-in plugins, in the order in which they are registered."""
PROFILER = "hooktrain.builtins.profiler:profile"
"""What ``profile_hooks`` registers once all plugins are there."""


def make_host(
    config: PluginsConfig = PluginsConfig(),
    *,
    discover: bool = True,
    python_parts: PythonParts | None = None,
    switches: Switches = Switches(),
    problems: list[PluginError] | None = None,
) -> PluginHost:
    """Load the built-in plugins, and those that are installed; arguments are those of :class:`PluginHost`."""
    own = {
        name: resolve_name(path)()
        for name, path in DEFAULT_PLUGINS.items()
        if name != "python_parts" or python_parts is None
    }
    if python_parts is not None:
        own["python_parts"] = python_parts
    return PluginHost(config, own, discover=discover, switches=switches, problems=problems)


def load(
    recipe: Path | Mapping[str, Any],
    *,
    overrides: list[str] | None = None,
    switches: list[str] | None = None,
    plugins: list[object] | None = None,
    discover: bool = True,
    python_parts: PythonParts | None = None,
    source: str = "recipe",
    name: str = "recipe",
) -> tuple[Recipe, PluginHost]:
    """Read a recipe, load the plugins that it asks for, and structure it.

    Args:
        recipe: a YAML file, or what it would hold.
        overrides: ``key=value`` words.
        switches: ``name``, ``no:name`` and ``no:*``, after those of the environment variable ``HOOKTRAIN_PLUGINS``.
        plugins: plugin objects to register after the installed ones.
        discover: whether to load installed plugins.
        python_parts: the plugin with the objects that were passed from Python, where some were.
        source: what to call the recipe in errors, where it is no file.
        name: the recipe's name, likewise.

    Raises:
        RecipeError: with everything that is wrong in the recipe and its plugins.
        PluginError: when a plugin that the run names cannot be loaded, or plugins clash, and nothing else is wrong.
    """
    if isinstance(recipe, Path):
        source, name = str(recipe), recipe.stem
    raw = apply_overrides(read_recipe(recipe) if isinstance(recipe, Path) else dict(recipe), overrides or [])
    if masked := masked_values(raw):
        raise RecipeError(masked, source)
    words = Switches.given(switches or ())
    host = make_host(plugins_config(raw, []), discover=discover, python_parts=python_parts, switches=words, problems=[])
    for plugin in plugins or []:
        host.register(plugin)
    found = problems_of([partial(check_installed, host)])
    problems = [*(host.problems or ()), *found]
    try:
        world = World.from_environment()
        made = resolve(raw, host, source=source, name=name).for_ranks(world)
    except RecipeError as problem:
        problem.complaints[:0] = map(complaint_of, problems)
        problem.rename(source)
        raise
    with _explained(host, world):
        problems += check_used(host, made)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise RecipeError(map(complaint_of, problems), source)
    host.recipe_source, host.given_recipe = source, raw
    with _explained(host, world):
        if made.profile_hooks:
            resolve_name(PROFILER)(host)
        answers = host.hooks.check_recipe(recipe=made, world=world)
        complaints = [*logit_complaints(host, made), *(complaint for answer in answers for complaint in answer)]
    if complaints:
        raise RecipeError(complaints, source)
    return made, host


@contextlib.contextmanager
def _explained(host: PluginHost, world: World) -> Iterator[None]:
    """Name the plugin and hook in what is raised: a plugin's exit would look as if all had been done."""
    try:
        yield
    except BaseException as problem:
        explain(host, problem, 0, world.rank)
        raise
