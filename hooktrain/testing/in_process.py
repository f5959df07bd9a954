"""Training runs in the process of the test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hooktrain.plugin.manager import PluginHost
from hooktrain.testing.tiny_plugin import TinyPlugin
from hooktrain.training.load import load, make_host
from hooktrain.training.trainer import Trainer

__all__ = ["host_of", "train"]


def train(
    recipe: Path | Mapping[str, Any], *plugins: object, overrides: list[str] | None = None, **arguments: Any
) -> Trainer:
    """Run a recipe in this process with the installed plugins, ``tiny`` and others; returns the trainer."""
    made, host = load(recipe, overrides=overrides, plugins=[TinyPlugin(), *plugins])
    trainer = Trainer(made, host, **arguments)
    trainer.run()
    return trainer


def host_of(*plugins: object) -> PluginHost:
    """Return a host with the built-in plugins, ``tiny`` and others, without the installed ones."""
    host = make_host(discover=False)
    for plugin in (TinyPlugin(), *plugins):
        host.register(plugin)
    return host
