"""Commands that plugins add to ``hooktrain``: found by their metadata, imported when they are run."""

from __future__ import annotations

import importlib.metadata
from pkgutil import resolve_name
from typing import Any, NamedTuple

import click

from hooktrain.errors import PluginError, described
from hooktrain.plugin.config import Switches
from hooktrain.plugin.discovery import import_named, installed
from hooktrain.plugin.info import about

__all__ = ["GROUP", "PluginCommand", "plugin_command", "plugin_commands"]

GROUP = "hooktrain.commands"
"""The entry-point group that commands are found through."""


class PluginCommand(NamedTuple):
    """A command of a plugin.

    Attributes:
        name: the word on the command line.
        path: where it is, as ``module:command``.
        distribution: what was pip-installed to bring it; empty for a module without metadata.
        owner: the distribution with its version, or the module.
    """

    name: str
    path: str
    distribution: str
    owner: str


def plugin_commands() -> dict[str, PluginCommand]:
    """Return the commands by name: installed ones, and those of modules that ``HOOKTRAIN_PLUGINS`` names.

    Raises:
        PluginError: two plugins have one of the same name; or a module that is named cannot be imported.
    """
    found: dict[str, PluginCommand] = {}
    for command in (*_installed(), *_of_modules()):
        twin = found.setdefault(command.name, command)
        if twin.path != command.path:
            raise PluginError(
                f"hooktrain {command.name}: {twin.owner} and {command.owner} both have a command of this name, expected"
                " one; uninstall one of them"
            )
    return found


def plugin_command(name: str) -> Any:
    """Import a command, and with it that plugin only; None where no plugin has one of this name.

    Raises:
        PluginError: it cannot be imported, or is no command.
    """
    found = None if name.startswith("-") else plugin_commands().get(name)
    if found is None:
        return None
    try:
        command = resolve_name(found.path)
    except KeyboardInterrupt:
        raise
    except BaseException as problem:
        raise PluginError(
            f"hooktrain {name}: {found.path} of {found.owner} cannot be imported ({described(problem)}); fix or"
            " uninstall it"
        ) from problem
    if not isinstance(command, click.Command):
        raise PluginError(
            f"hooktrain {name}: {found.path} of {found.owner} is a {type(command).__name__}, expected a click command"
        )
    return command


def _installed() -> list[PluginCommand]:
    points = sorted(importlib.metadata.entry_points(group=GROUP), key=lambda point: (point.name, point.value))
    return [
        PluginCommand(
            point.name,
            point.value,
            point.dist.name if point.dist else "",
            f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution",
        )
        for point in points
    ]


def _of_modules() -> list[PluginCommand]:
    known, _ = installed()
    named = [word for word in Switches.given().environment if word and not word.startswith("no:") and word not in known]
    return [
        PluginCommand(name, path, "", module)
        for module in named
        for name, path in about(import_named(module, known)).commands.items()
    ]
