"""Plugin ``early_stopping``: ends a run when a metric of the evaluation has stopped to improve."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from hooktrain import Complaint, PluginInfo, Recipe, at_least, field, hookimpl, is_better, one_of, watched_value

if TYPE_CHECKING:
    from hooktrain import Trainer

__all__ = ["EarlyStoppingConfig", "EarlyStoppingPlugin"]


@attrs.frozen(kw_only=True)
class EarlyStoppingConfig:
    """A metric of the evaluation, and how long it may fail to improve."""

    patience: int = field(default=0, validator=at_least(0), affects_training=False)
    """Evaluations in a row without improvement after which the run ends; 0 does not stop."""
    metric: str = field(default="", affects_training=False)
    """Such as ``eval/held_out/loss``; the loss of the only evaluation set when omitted."""
    mode: str = field(default="min", validator=one_of("min", "max"), affects_training=False)
    """Whether lower or higher values are better."""
    threshold: float = field(default=0.0, validator=at_least(0), affects_training=False)
    """Share of the best value by which another one has to be better to count as an improvement."""


class EarlyStoppingPlugin:
    """Counts evaluations without improvement, over resumes too, and requests a stop."""

    hooktrain_plugin = PluginInfo(active_when=lambda recipe: _settings(recipe) != EarlyStoppingConfig())

    def __init__(self) -> None:
        self._best: float | None = None
        self._best_step = self._without = 0

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"settings": {"early_stopping": EarlyStoppingConfig}}

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> Iterator[Complaint]:
        if not _settings(recipe).patience:
            yield Complaint("early_stopping.patience", "missing or 0, which never stops; write how many evaluations")
        elif not recipe.eval_interval:
            yield Complaint("early_stopping", "nothing is evaluated before the end; write an eval_interval too")

    @hookimpl
    def on_evaluate_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        if not metrics:  # it was cut short
            return
        config = _settings(trainer.recipe)
        value = watched_value(metrics, config.metric, "early_stopping.metric")
        worst = -math.inf if config.mode == "max" else math.inf
        best = worst if self._best is None else self._best
        if is_better(value, best, config.threshold, config.mode):
            self._best, self._best_step, self._without = value, trainer.global_step, 0
            return
        self._without += 1
        if self._without >= config.patience:
            trainer.request_stop(
                f"{config.metric or 'the loss of the evaluation'} has not improved in {self._without} evaluations: it"
                f" is {value:.4g}, and was {best:.4g} at step {self._best_step}"
            )

    @hookimpl
    def collect_state(self) -> Mapping[str, Any]:
        return {"best": self._best, "best_step": self._best_step, "without": self._without}

    @hookimpl
    def restore_state(self, state: Mapping[str, Any]) -> None:
        self._best, self._best_step, self._without = state["best"], state["best_step"], state["without"]


def _settings(recipe: Recipe) -> EarlyStoppingConfig:
    found = recipe.settings.get("early_stopping")
    return found if isinstance(found, EarlyStoppingConfig) else EarlyStoppingConfig()
