"""The plugin: a wrapper of the strategy and of the evaluation, with a state."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs
from hooktrain import Complaint, MemoryEstimate, ModelEstimate, PluginInfo, Recipe, between, field, hookimpl

if TYPE_CHECKING:
    from hooktrain import Strategy, Trainer

    from hooktrain_ema.average import MovingAverage

__all__ = ["EMAPlugin", "EMASettings"]


@attrs.frozen(kw_only=True)
class EMASettings:
    """The recipe key ``ema``."""

    decay: float = field(default=0.0, validator=between(0, 1))
    """Share of the average that a step leaves, such as 0.999; 0 keeps no average."""


class EMAPlugin:
    """Averages weights while they are trained."""

    # the training stays the same, so that a resumed run may have it or not
    hooktrain_plugin = PluginInfo(
        api=">=2.0,<3",
        excludes=["swa"],
        only_observes=True,
        active_when=lambda recipe: recipe.settings["ema"].decay > 0,
    )

    def __init__(self) -> None:
        self.average: MovingAverage | None = None

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"settings": {"ema": EMASettings}}

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> Iterator[Complaint]:
        # with sharded weights no rank has the complete average
        if recipe.settings["ema"].decay and getattr(recipe.strategy, "data_parallel", None) != "ddp":
            yield Complaint(
                "ema.decay", "works with strategy: {type: torch, data_parallel: ddp} only; change one of them"
            )

    @hookimpl(wrapper=True)
    def make_strategy(self, recipe: Recipe) -> Generator[None, Strategy, Any]:
        made = yield
        decay = recipe.settings["ema"].decay
        if not decay:
            return made
        from hooktrain_ema.average import AveragingStrategy, MovingAverage

        self.average = MovingAverage(decay)
        return AveragingStrategy(made, self.average)

    @hookimpl(wrapper=True)
    def run_evaluate(self, trainer: Trainer) -> Generator[None, Mapping[str, float], Mapping[str, float]]:
        if self.average is None or not self.average.steps:
            return (yield)
        with self.average.in_place_of(trainer.strategy.unwrap(trainer.model)):
            return (yield)

    @hookimpl(wrapper=True)
    def estimate_memory(
        self, recipe: Recipe, model: ModelEstimate
    ) -> Generator[None, MemoryEstimate | None, MemoryEstimate | None]:
        made = yield
        if made is None or not recipe.settings["ema"].decay:
            return made
        size = 4 * model.trainable
        return attrs.evolve(
            made,
            device={**made.device, "averaged weights": size},
            peak=None if made.peak is None else made.peak + size,
        )

    @hookimpl
    def collect_state(self) -> Mapping[str, Any] | None:
        return None if self.average is None else self.average.state_dict()

    @hookimpl
    def restore_state(self, trainer: Trainer, state: Mapping[str, Any]) -> None:
        if self.average is not None:
            self.average.load_state_dict(state, trainer.device)
