"""Plugin ``plateau``: hands the metrics of an evaluation to a schedule that depends on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from hooktrain import Complaint, PluginInfo, Recipe, hookimpl, watched_value
from hooktrain_torch.schedules import PlateauConfig, PlateauSchedule

if TYPE_CHECKING:
    from hooktrain import Trainer

__all__ = ["PlateauPlugin"]


class PlateauPlugin:
    """Reduces the learning rate of the schedule ``plateau``."""

    hooktrain_plugin = PluginInfo(
        active_when=lambda recipe: isinstance(recipe.scheduler, PlateauConfig), changes_gradients=True
    )

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> Iterator[Complaint]:
        if not recipe.eval_interval:
            yield Complaint(
                "scheduler.type", "given plateau, but nothing is evaluated before the end; write an eval_interval too"
            )

    @hookimpl
    def on_evaluate_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        schedule = trainer.scheduler
        if not metrics or not isinstance(schedule, PlateauSchedule):  # an evaluation that was cut short has none
            return
        value = watched_value(metrics, schedule.config.metric, "scheduler.metric")
        if schedule.evaluated(value):
            rates = ", ".join(f"{rate:.1e}" for rate in dict.fromkeys(schedule.get_last_lr()))
            trainer.say(f"plateau: the learning rate is {rates} from step {trainer.global_step + 1} on")
