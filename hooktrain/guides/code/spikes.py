"""Tells other plugins when the loss jumps, through a hook of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import pluggy
from hooktrain import Trainer, at_least, field, hookimpl, hookspec


class Hooks:
    """What this plugin adds to the hooks of hooktrain."""

    @hookspec
    def on_spike(self, trainer: Trainer, loss: float, usual: float) -> None:
        """The loss is far above what it was before.

        Called: by ``spikes``, in ``on_log``.
        Ranks: every rank, with equal values.
        Device: may wait for the device: metrics have just been read.

        Args:
            trainer: the trainer.
            loss: the loss of this log line.
            usual: its running mean before.

        Returns:
            Ignored.

        Default: ``spikes`` itself says so.
        """


@attrs.frozen(kw_only=True)
class Settings:
    """What a recipe may say under ``spikes``."""

    factor: float = field(
        default=2.0, validator=at_least(1), affects_training=False
    )
    """How many times its running mean makes a loss a spike."""


class Spikes:
    def __init__(self) -> None:
        self.usual: float | None = None

    @hookimpl
    def register_hookspecs(
        self, pluginmanager: pluggy.PluginManager
    ) -> None:
        pluginmanager.add_hookspecs(Hooks)

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"settings": {"spikes": Settings}}

    @hookimpl
    def on_log(
        self, trainer: Trainer, metrics: Mapping[str, float]
    ) -> None:
        if "loss" not in metrics:
            return  # the line of an evaluation before the first step
        loss, usual = metrics["loss"], self.usual
        factor = trainer.recipe.settings["spikes"].factor
        if usual is not None and loss > factor * usual:
            trainer.hooks.on_spike(trainer=trainer, loss=loss, usual=usual)
        self.usual = loss if usual is None else 0.9 * usual + 0.1 * loss

    @hookimpl
    def on_spike(self, trainer: Trainer, loss: float, usual: float) -> None:
        step = trainer.global_step
        trainer.say(f"step {step}: loss {loss:.2f}, usually {usual:.2f}")

    @hookimpl
    def collect_state(self) -> Mapping[str, Any]:
        return {"usual": self.usual}

    @hookimpl
    def restore_state(self, state: Mapping[str, Any]) -> None:
        self.usual = state["usual"]
