"""Hooks of ``hooktrain-deepspeed``. DeepSpeed is imported when a run uses it, not when the plugin is listed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hooktrain import Complaint, MemoryEstimate, ModelEstimate, Recipe, RecipeAlias, Strategy, World, hookimpl

__all__ = ["DeepSpeedPlugin"]


def _not_about_the_processor(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Setting accelerator to CPU")


# other libraries import DeepSpeed wherever it is installed, and without a GPU it prints that to standard output
logging.getLogger("DeepSpeed").addFilter(_not_about_the_processor)


class DeepSpeedPlugin:
    """Registers the ``deepspeed`` strategy, DeepSpeed's optimizers and its checkpoints."""

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        from hooktrain_deepspeed.checkpoint import DeepSpeedCheckpointConfig
        from hooktrain_deepspeed.config import DeepSpeedConfig
        from hooktrain_deepspeed.optimizers import CPUAdamConfig, FusedAdamConfig

        return {
            "strategy": {"deepspeed": DeepSpeedConfig},
            "optimizer": {"cpu_adam": CPUAdamConfig, "fused_adam": FusedAdamConfig},
            "checkpoint": {"deepspeed": DeepSpeedCheckpointConfig},
        }

    @hookimpl
    def register_recipe_aliases(self) -> list[RecipeAlias]:
        return [RecipeAlias(key="deepspeed", to="strategy.config", implies={"strategy.type": "deepspeed"})]

    @hookimpl
    def check_recipe(self, recipe: Recipe, world: World) -> Iterable[Complaint]:
        from hooktrain_deepspeed.checkpoint import DeepSpeedCheckpointConfig
        from hooktrain_deepspeed.config import DeepSpeedConfig, complaints_about
        from hooktrain_deepspeed.optimizers import FusedAdamConfig

        made: list[Complaint] = []
        if isinstance(recipe.optimizer, FusedAdamConfig):
            from hooktrain_torch import group_complaints

            made += group_complaints(recipe.optimizer, {})
        if isinstance(recipe.strategy, DeepSpeedConfig):
            return made + complaints_about(recipe.strategy, recipe, world)
        return made + [
            Complaint(
                f"checkpoint[{number}].type", "given deepspeed, which only its own strategy can write; write full"
            )
            for number, config in enumerate(recipe.checkpoint)
            if isinstance(config, DeepSpeedCheckpointConfig)
        ]

    @hookimpl
    def make_strategy(self, config: Any, world: World, recipe: Recipe) -> Strategy | None:
        from hooktrain_deepspeed.config import DeepSpeedConfig

        if not isinstance(config, DeepSpeedConfig):
            return None
        from hooktrain_deepspeed.strategy import DeepSpeedStrategy

        return DeepSpeedStrategy(config, world, recipe)

    @hookimpl
    def make_optimizer(self, config: Any, model: Any) -> Any:
        from hooktrain_deepspeed.optimizers import FusedAdamConfig, make_optimizer

        return make_optimizer(config, model) if isinstance(config, FusedAdamConfig) else None

    @hookimpl
    def make_checkpoint_engine(self, config: Any, run_dir: Path, world: World) -> Any:
        from hooktrain_deepspeed.checkpoint import DeepSpeedCheckpoint, DeepSpeedCheckpointConfig

        made = isinstance(config, DeepSpeedCheckpointConfig)
        return DeepSpeedCheckpoint(config, run_dir, world) if made else None

    @hookimpl
    def estimate_memory(self, config: Any, recipe: Recipe, world: World, model: ModelEstimate) -> MemoryEstimate | None:
        from hooktrain_deepspeed.config import DeepSpeedConfig
        from hooktrain_deepspeed.estimate import estimate_memory

        return estimate_memory(config, recipe, world, model) if isinstance(config, DeepSpeedConfig) else None
