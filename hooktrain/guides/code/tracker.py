"""Keeps the metrics of runs in a database, as a tracker does."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

import attrs
from hooktrain import PluginInfo, Recipe, Trainer, field, hookimpl


@attrs.frozen(kw_only=True)
class Settings:
    """What a recipe may say under ``tracker``."""

    file: str = field(default="", affects_training=False)
    """The database; nothing is tracked without one."""


def _is_used(recipe: Recipe) -> bool:
    settings: Settings = recipe.settings["tracker"]
    return bool(settings.file)


class Tracker:
    hooktrain_plugin = PluginInfo(
        only_observes=True, on_error="disable", active_when=_is_used
    )

    def __init__(self) -> None:
        self.run = ""
        self.database: sqlite3.Connection | None = None

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"settings": {"tracker": Settings}}

    @hookimpl
    def on_train_start(self, trainer: Trainer) -> None:
        self.run = self.run or trainer.run_id  # a resumed run has its own
        if trainer.world.is_main:
            settings = trainer.recipe.settings["tracker"]
            self.database = sqlite3.connect(settings.file)
            self.database.executescript(TABLES)
            self._write("running")

    @hookimpl
    def on_log(
        self, trainer: Trainer, metrics: Mapping[str, float]
    ) -> None:
        if self.database is not None:
            step = trainer.global_step
            rows = [(self.run, step, *item) for item in metrics.items()]
            command = "INSERT OR REPLACE INTO metrics VALUES (?, ?, ?, ?)"
            self.database.executemany(command, rows)
            self.database.commit()

    @hookimpl
    def on_train_end(self) -> None:
        self._write("finished")

    @hookimpl
    def on_exception(self, exception: BaseException) -> None:
        self._write("failed")

    @hookimpl
    def on_teardown(self) -> None:
        if self.database is not None:
            self.database.close()
            self.database = None

    @hookimpl
    def collect_state(self) -> Mapping[str, Any]:
        return {"run": self.run}

    @hookimpl
    def restore_state(self, state: Mapping[str, Any]) -> None:
        self.run = state["run"]

    def _write(self, status: str) -> None:
        if self.database is not None:
            row = (self.run, status)
            command = "INSERT OR REPLACE INTO runs VALUES (?, ?)"
            self.database.execute(command, row)
            self.database.commit()


TABLES = """
CREATE TABLE IF NOT EXISTS runs (run PRIMARY KEY, status);
CREATE TABLE IF NOT EXISTS metrics
(run, step, name, value, PRIMARY KEY (run, step, name));
"""
