"""The commands that only look: ``plugins``, ``hooks`` and ``plan``."""

from __future__ import annotations

from pathlib import Path

import click

from hooktrain.options import as_json, host_of, print_facts, recipe_options

__all__ = ["hooks", "plan", "plugins"]


@click.command()
@recipe_options
@as_json
def plan(recipe: Path, overrides: tuple[str, ...], switches: tuple[str, ...], as_json: bool) -> None:
    """Show what a recipe would run, without running it."""
    from hooktrain.build import load
    from hooktrain.report.plan import plan_of, print_plan

    made, host = load(recipe, overrides=list(overrides), switches=list(switches))
    print_facts(plan_of(made, host), as_json, print_plan)


@click.command()
@click.argument("name", required=False)
@click.option("-p", "switches", multiple=True, metavar="NAME", help="Load a plugin; no:NAME blocks one, no:* all.")
@as_json
def plugins(name: str | None, switches: tuple[str, ...], as_json: bool) -> None:
    """List plugins, what they offer and why one is out; or show one in full."""
    from hooktrain.report.plugins import plugins_of, print_plugin, print_plugins

    print_facts(plugins_of(host_of(switches), name), as_json, print_plugins if name is None else print_plugin)


@click.command()
@click.argument("name", required=False)
@click.option("-p", "switches", multiple=True, metavar="NAME", help="Load a plugin; no:NAME blocks one, no:* all.")
@as_json
def hooks(name: str | None, switches: tuple[str, ...], as_json: bool) -> None:
    """List the hooks, or show one, and who implements it."""
    from hooktrain.report.hooks import hooks_of, print_hooks

    print_facts(hooks_of(host_of(switches), name), as_json, print_hooks)
