"""The hooks of ``hooktrain-deepspeed``. DeepSpeed is imported when a run uses it, not when the plugin is listed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from hooktrain import Complaint, Recipe, Strategy, World, hookimpl

__all__ = ["DeepSpeedPlugin"]


def _not_about_the_processor(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Setting accelerator to CPU")


# other libraries import DeepSpeed wherever it is installed, and without a GPU it says so on the standard output
logging.getLogger("DeepSpeed").addFilter(_not_about_the_processor)


class DeepSpeedPlugin:
    """Offers the ``deepspeed`` strategy."""

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        from hooktrain_deepspeed.config import DeepSpeedConfig

        return {"strategy": {"deepspeed": DeepSpeedConfig}}

    @hookimpl
    def check_recipe(self, recipe: Recipe, world: World) -> Iterable[Complaint]:
        from hooktrain_deepspeed.config import DeepSpeedConfig, complaints_about

        if not isinstance(recipe.strategy, DeepSpeedConfig):
            return []
        return complaints_about(recipe.strategy, recipe, world)

    @hookimpl
    def make_strategy(self, config: Any, world: World, recipe: Recipe) -> Strategy | None:
        from hooktrain_deepspeed.config import DeepSpeedConfig

        if not isinstance(config, DeepSpeedConfig):
            return None
        from hooktrain_deepspeed.strategy import DeepSpeedStrategy

        return DeepSpeedStrategy(config, world, recipe)
