"""Ends a run when an evaluation metric has stopped getting better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from hooktrain import Trainer, at_least, field, hookimpl


@attrs.frozen(kw_only=True)
class Settings:
    """What a recipe may say under ``patience``."""

    metric: str = field(
        default="eval/held_out/loss", affects_training=False
    )
    """What to watch; the smaller the better."""
    evaluations: int = field(
        default=0, validator=at_least(0), affects_training=False
    )
    """Evaluations without a new best that end the run; 0 never does."""


class Patience:
    """Named by the entry point; each run makes an instance of its own."""

    def __init__(self) -> None:
        self.best = float("inf")
        self.waited = 0

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"settings": {"patience": Settings}}

    @hookimpl
    def on_evaluate_end(
        self, trainer: Trainer, metrics: Mapping[str, float]
    ) -> None:
        settings = trainer.recipe.settings["patience"]
        value = metrics.get(settings.metric)
        if not settings.evaluations or value is None:
            return
        better = value < self.best
        self.best = min(value, self.best)
        self.waited = 0 if better else self.waited + 1
        if better:
            trainer.request_save()
        elif self.waited >= settings.evaluations:
            trainer.request_stop(
                f"{settings.metric} was best at {self.best:.4f},"
                f" {self.waited} evaluations ago"
            )

    @hookimpl
    def collect_state(self) -> Mapping[str, Any]:
        return {"best": self.best, "waited": self.waited}

    @hookimpl
    def restore_state(self, state: Mapping[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]
