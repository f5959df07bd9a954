"""Options and output that commands share. Imports nothing heavy."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hooktrain.masking import mask_text
from hooktrain.plugin.discovery import UNTRUSTED

if TYPE_CHECKING:
    from hooktrain.plugin.manager import PluginHost

__all__ = ["as_json", "from_dialect", "host_of", "plugin_switches", "print_facts", "recipe_options", "source_options"]

plugin_switches = click.option(
    "-p", "switches", multiple=True, metavar="NAME", help="Load a plugin; no:NAME blocks one, no:* all."
)


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of every command that reads a recipe."""
    return _reading(command, click.argument("recipe", type=click.Path(path_type=Path)))


def source_options(metavar: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options of every command that takes a trained model, and reads the recipe that comes with it."""
    return lambda command: _reading(command, click.argument("source", metavar=metavar))


def _reading(command: Callable[..., Any], argument: Any) -> Callable[..., Any]:
    @functools.wraps(command)
    def run(*, untrusted: bool, switches: tuple[str, ...], **given: Any) -> Any:
        if not untrusted:
            return command(switches=switches, **given)
        os.environ[UNTRUSTED] = ",".join(["1", *switches])  # which ranks have as well
        try:
            return command(switches=switches, **given)
        finally:
            del os.environ[UNTRUSTED]

    decorated: Callable[..., Any] = run
    for decorate in (
        click.option(
            "--untrusted",
            is_flag=True,
            help="The recipe is a stranger's: import installed packages only, and what -p names.",
        ),
        plugin_switches,
        click.option(
            "-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Set a value, such as optimizer.lr=1e-4."
        ),
        argument,
    ):
        decorated = decorate(decorated)
    return decorated


from_dialect = click.option(
    "--from", "dialect", metavar="NAME", help="The recipe is another program's: arctic, trl, ... (`hooktrain convert`)."
)

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def host_of(switches: Sequence[str]) -> PluginHost:
    """The plugins without any recipe."""
    from hooktrain.plugin.config import Switches
    from hooktrain.training.load import make_host

    return make_host(switches=Switches.given(switches))


def print_facts(facts: Any, as_json: bool, show: Callable[[Any], None]) -> None:
    """Print facts as JSON, or for people."""
    if as_json:
        click.echo(mask_text(json.dumps(facts, indent=2, default=str)))
    else:
        show(facts)
