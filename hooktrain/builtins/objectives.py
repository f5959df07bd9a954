"""``objectives``: measurements of a loss that consists of several terms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import attrs

from hooktrain.config import at_least, field
from hooktrain.errors import Complaint
from hooktrain.markers import hookimpl
from hooktrain.plugin.info import PluginInfo
from hooktrain.protocols import ConfigDefaults, member
from hooktrain.recipe.model import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from hooktrain.training.gradient_conflicts import GradientConflicts
    from hooktrain.training.trainer import Trainer

__all__ = ["Objectives", "ObjectivesConfig"]


@attrs.frozen(kw_only=True)
class ObjectivesConfig:
    """Measurements of a loss that consists of several terms."""

    conflicts: int = field(default=0, validator=at_least(0), affects_training=False)
    """Optimizer steps from one comparison of the terms' gradients to the next; 0 compares none. It logs their cosine,
    in all and by layer, as ``cosine/<one>/<other>/<layer>``: negative where one term undoes the other. Such a step
    computes a backward pass for each term, and keeps a gradient for each."""


class Objectives:
    """Logs the cosines between the gradients of terms."""

    hooktrain_plugin = PluginInfo(
        active_when=lambda recipe: recipe.settings["objectives"].conflicts > 0, only_observes=True
    )

    def __init__(self) -> None:
        self._conflicts: GradientConflicts | None = None

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"settings": {"objectives": ObjectivesConfig}}

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> Iterator[Complaint]:
        if member(recipe.strategy, ConfigDefaults, "shards_weights"):
            yield Complaint(
                "objectives.conflicts",
                "needs all weights on each rank, and this strategy shards them; remove it, or shard less",
            )

    @hookimpl
    def on_train_start(self, trainer: Trainer) -> None:
        from hooktrain.training.gradient_conflicts import GradientConflicts

        self._conflicts = GradientConflicts(trainer, trainer.recipe.settings["objectives"].conflicts)
        trainer.host.conflicts = self._conflicts

    @hookimpl
    def collect_metrics(self) -> Mapping[str, Tensor] | None:
        if self._conflicts is None:
            return None
        found, self._conflicts.found = self._conflicts.found, {}
        return found

    @hookimpl
    def on_train_end(self, trainer: Trainer) -> None:
        if self._conflicts is not None and self._conflicts.skipped:
            trainer.host.warn(
                f"objectives.conflicts: {', '.join(sorted(self._conflicts.skipped))} is computed in the loss and has"
                " no gradient of its own, so it was compared with nothing"
            )

    @hookimpl
    def on_teardown(self, trainer: Trainer) -> None:
        self._conflicts = trainer.host.conflicts = None
