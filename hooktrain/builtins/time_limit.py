"""``max_time``: saves and ends a run before a time is over, as where a scheduler would end it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from hooktrain.markers import hookimpl
from hooktrain.plugin.info import PluginInfo

if TYPE_CHECKING:
    from hooktrain.training.trainer import Trainer

__all__ = ["TimeLimit"]

_UNKNOWN_SAVE = 0.05
"""Share of the time that is kept for the last save while none has been measured."""
_MARGIN = 1.5
"""How much longer than the longest save before it the last one may take."""


class TimeLimit:
    """Requests an urgent stop while there is still time for one more step and for the save.

    The time of a step includes evaluations and saves after it, so that none of these begins that could not end.
    """

    hooktrain_plugin = PluginInfo(active_when=lambda recipe: recipe.max_time > 0)

    def __init__(self) -> None:
        self._began = time.monotonic()  # as the process does, before data and model
        self._step_ended = self._save_began = 0.0
        self._longest_step = self._longest_save = 0.0

    @hookimpl
    def on_train_start(self, trainer: Trainer) -> None:
        self._step_ended = time.monotonic()
        if not any(engine.config.enabled for engine in trainer.checkpoint_engines):
            trainer.host.warn("max_time: nothing is saved when the time is over; add a checkpoint of type full")

    @hookimpl
    def on_checkpoint_start(self) -> None:
        self._save_began = time.monotonic()

    @hookimpl
    def on_checkpoint_end(self, path: Path) -> None:
        if self._save_began:
            self._longest_save = max(self._longest_save, time.monotonic() - self._save_began)

    @hookimpl
    def on_step_end(self, trainer: Trainer) -> None:
        now, limit = time.monotonic(), trainer.recipe.max_time
        self._longest_step = max(self._longest_step, now - self._step_ended)
        self._step_ended = now
        save = self._longest_save * _MARGIN or limit * _UNKNOWN_SAVE
        passed = now - self._began
        if passed + self._longest_step + save >= limit and not trainer.should_stop:
            trainer.request_stop(
                f"max_time: {passed:.0f} of {limit:.0f} s have passed, and a step and a save may take"
                f" {self._longest_step + save:.1f} s more",
                urgent=True,
            )
