"""The recipe's ``plugins`` section, and the words of the command line and the environment that change it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from hooktrain.config import field, structure
from hooktrain.errors import Complaint

__all__ = ["PluginsConfig", "Switches", "plugins_config"]


@attrs.frozen(kw_only=True)
class PluginsConfig:
    """Which plugins are active, and which runs a loop hook that several implement."""

    block: tuple[str, ...] = field(default=())
    """Installed plugins to leave out; they are not imported."""
    only: tuple[str, ...] | None = field(default=None)
    """If given, installed plugins other than these are left out."""
    autoload: bool = field(default=True)
    """Whether installed plugins are loaded without being named."""
    load: tuple[str, ...] = field(default=())
    """Plugins to load by name: installed ones, modules (``package.module`` or ``package.module:Class``), or files
    (``mine.py``). The recipe's ``code: mine.py`` is short for one."""
    loop_hooks: Mapping[str, str] = field(factory=dict)
    """For a loop hook that several plugins implement, the plugin that runs it."""
    order: tuple[str, ...] = field(default=())
    """Plugins that are called before all others at every hook, in this order."""
    on_error: Mapping[str, str] = field(factory=dict)
    """For a plugin whose hook raises, whether to ``stop`` the run, ``disable`` the plugin or ``warn`` and continue;
    only event hooks, metrics and states may fail; left out, each plugin's own policy counts."""
    lock: Path | None = field(default=None)
    """A file that ``hooktrain plan --lock`` wrote, looked for in the current folder as every path of a recipe is: a run
    with other plugins than it says is refused."""

    @property
    def listed(self) -> tuple[str, ...]:
        """Plugins that are blocked, allowed or loaded by name."""
        return (*self.block, *(self.only or ()), *self.load)

    @property
    def named(self) -> set[str]:
        """Plugins that the run does not go without."""
        return {*self.load, *(self.only or ()), *self.loop_hooks.values(), *self.order}

    def switched(self, words: Iterable[str]) -> PluginsConfig:
        """The same with ``name``, ``no:name`` and ``no:*`` applied, as ``-p`` and ``HOOKTRAIN_PLUGINS`` give them."""
        config = self
        for word in filter(None, (word.strip() for word in words)):
            name = word.removeprefix("no:")
            if word == "no:*":
                config = attrs.evolve(config, autoload=False)
            elif word.startswith("no:"):
                load = tuple(other for other in config.load if other != name)
                config = attrs.evolve(config, block=_with(config.block, name), load=load)
            else:
                block = tuple(other for other in config.block if other != name)
                config = attrs.evolve(config, load=_with(config.load, name), block=block)
        return config


@attrs.frozen
class Switches:
    """The words that switch plugins for one run, over what its recipe says.

    Attributes:
        environment: those of ``HOOKTRAIN_PLUGINS``.
        line: those of ``-p``, which come after them.
    """

    environment: tuple[str, ...] = ()
    line: tuple[str, ...] = ()

    @classmethod
    def given(cls, line: Iterable[str] = ()) -> Switches:
        """Those of this process's environment, and the words of a command line."""
        environment = os.environ.get("HOOKTRAIN_PLUGINS", "").split(",")
        return cls(tuple(word.strip() for word in environment), tuple(word.strip() for word in line))

    def applied(self, config: PluginsConfig) -> PluginsConfig:
        """Return a recipe's settings with the words applied."""
        return config.switched((*self.environment, *self.line))

    def said(self, word: str) -> str:
        """Return where a word was given, as the user wrote it; empty when it was not."""
        if word in self.line:
            return f"command line -p {word}"
        return f"environment HOOKTRAIN_PLUGINS={word}" if word in self.environment else ""


def _with(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    """Names with one that may be among them: a recipe that a run has kept is switched again by the environment."""
    return names if name in names else (*names, name)


def plugins_config(raw: Mapping[str, Any], complaints: list[Complaint]) -> PluginsConfig:
    """The recipe's ``plugins`` section, which is needed before any plugin can be loaded.

    Args:
        raw: the recipe.
        complaints: what is wrong is appended here; the result has the keys that are right.
    """
    given = raw.get("plugins") or {}
    if not isinstance(given, Mapping):
        complaints.append(Complaint("plugins", f"given {given!r}, expected a mapping with block, only, load, ..."))
        return PluginsConfig()
    found: list[Complaint] = []
    config = structure(PluginsConfig, given, "plugins", found)
    if config is None:
        wrong = tuple(complaint.where for complaint in found)
        right = {key: value for key, value in given.items() if not any(w.startswith(f"plugins.{key}") for w in wrong)}
        config = structure(PluginsConfig, right, "plugins", [])
    complaints += found
    config = config or PluginsConfig()
    code = raw.get("code")
    if code is not None and (not isinstance(code, str) or not code.endswith(".py")):
        complaints.append(Complaint("code", f"given {code!r}, expected a Python file with plugins, such as mine.py"))
    elif code is not None:
        config = attrs.evolve(config, load=_with(config.load, code))
    return config
