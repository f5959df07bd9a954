"""The commands that only look: ``plugins``, ``hooks``, ``plan`` and ``schema``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from hooktrain.cli.options import as_json, from_dialect, host_of, plugin_switches, print_facts, recipe_options

__all__ = ["hooks", "plan", "plugins", "schema"]


@click.command(short_help="Show what a recipe would run, without running it.")
@recipe_options
@from_dialect
@click.option("--nproc", type=click.IntRange(1), help="Ranks to plan for; WORLD_SIZE, or 1, when omitted.")
@click.option(
    "--diff", "other", type=click.Path(path_type=Path), metavar="OTHER",
    help="Compare with another recipe, a plan saved with --json, or a run directory.",
)  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="Show every default and who implements each hook, too.")
@click.option(
    "--lock", type=click.Path(path_type=Path), metavar="FILE",
    help="Write down the plugins that are active, for plugins.lock of a recipe.",
)  # fmt: skip
@click.option(
    "--no-estimates", is_flag=True, help="Do not estimate sizes of model, data and memory, for which torch is imported."
)
@as_json
def plan(
    recipe: Path,
    overrides: tuple[str, ...],
    switches: tuple[str, ...],
    dialect: str | None,
    nproc: int | None,
    other: Path | None,
    everything: bool,
    lock: Path | None,
    no_estimates: bool,
    as_json: bool,
) -> int:
    """Show what a recipe would run, without running it, and what it would take.

    Uses no GPU, no weights and no network. Ends with status 1 when there are errors.
    """
    from hooktrain.cli.convert import read_own_or_translated, refuse_foreign
    from hooktrain.cli.startup import collect_rarely, say_on_terminal
    from hooktrain.inspection.plan import read_phases
    from hooktrain.inspection.plan_diff import compare, print_difference
    from hooktrain.inspection.plan_text import PHASES
    from hooktrain.types import World

    raw = read_own_or_translated(recipe, dialect, switches)
    say_on_terminal(recipe, "loading plugins")
    if lock is not None:
        return _lock(recipe, raw, overrides, switches, lock)
    ranks = nproc or World.from_environment().world_size
    facts: Mapping[str, Any] = {}
    with collect_rarely():
        translated = raw if dialect else None
        phases = read_phases(recipe, overrides, switches, ranks, not no_estimates, translated)
        for number, facts in enumerate(phases):
            if number == 0 and facts["complaints"] and not dialect:
                refuse_foreign(raw, recipe, switches)
            if other is None and not as_json:  # each at once: the estimates need torch, and so take seconds
                PHASES[number](facts, everything)
                sys.stdout.flush()
        if other is not None:
            print_facts(compare(other, facts, ranks, not no_estimates), as_json, print_difference)
        elif as_json:
            print_facts(facts, as_json, lambda plan: None)
    return 1 if facts["complaints"] else 0


def _lock(recipe: Path, raw: dict[str, Any], overrides: tuple[str, ...], switches: tuple[str, ...], path: Path) -> int:
    from hooktrain.plugin.lockfile import write_lock
    from hooktrain.training.load import load

    # the lock that the recipe requires is the one that is to be written
    lines = [*overrides, "plugins.lock=null"]
    _, host = load(raw, overrides=lines, switches=list(switches), source=str(recipe), name=recipe.stem)
    write_lock(host, path)
    count = len(host.manifest())
    click.echo(f"{path}: {count} plugins; a recipe with plugins: {{lock: {path}}} runs with these alone")
    return 0


@click.command(short_help="List plugins, or one with its origin.")
@click.argument("name", required=False)
@plugin_switches
@as_json
def plugins(name: str | None, switches: tuple[str, ...], as_json: bool) -> None:
    """List plugins, what they register and why one is out; or show one in full."""
    from hooktrain.inspection.plugins import plugins_of, print_plugin, print_plugins

    print_facts(plugins_of(host_of(switches), name), as_json, print_plugins if name is None else print_plugin)


@click.command()
@click.argument("name", required=False)
@plugin_switches
@as_json
def hooks(name: str | None, switches: tuple[str, ...], as_json: bool) -> None:
    """List the hooks, or show one, and who implements it."""
    from hooktrain.inspection.hooks import hooks_of, print_hooks

    print_facts(hooks_of(host_of(switches), name), as_json, print_hooks)


@click.command(short_help="Print the JSON Schema of recipes.")
@plugin_switches
def schema(switches: tuple[str, ...]) -> None:
    """Print the JSON Schema of recipes with the installed plugins, for editors."""
    import json

    from hooktrain.recipe.json_schema import schema_of

    click.echo(json.dumps(schema_of(host_of(switches)), indent=2, default=str))
