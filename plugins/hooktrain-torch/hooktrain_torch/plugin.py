"""Hooks of ``hooktrain-torch``. Torch itself is imported when a part is built, not when the plugin is listed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from hooktrain import Complaint, MemoryEstimate, ModelEstimate, RecipeAlias, World, hookimpl
from hooktrain_torch import hookspecs

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.optim import Optimizer

    from hooktrain import Recipe, Scheduler, Strategy, Trainer
    from hooktrain_torch.checkpoint import FullCheckpoint

__all__ = ["TorchPlugin"]


class TorchPlugin:
    """Registers optimizers, schedules, the ``torch`` strategy and ``full`` checkpoints."""

    def __init__(self) -> None:
        self._built: dict[str, Any] = {}  # also for an engine that is made after the run
        self._engines: list[FullCheckpoint] = []

    @hookimpl
    def register_hookspecs(self, pluginmanager: pluggy.PluginManager) -> None:
        pluginmanager.add_hookspecs(hookspecs)

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        from hooktrain_torch.checkpoint_config import FullConfig
        from hooktrain_torch.optimizers import TYPES
        from hooktrain_torch.schedules import TYPES as SCHEDULES
        from hooktrain_torch.small_states import SMALL_STATES
        from hooktrain_torch.strategy_config import TorchConfig

        return {
            "optimizer": {**TYPES, **SMALL_STATES},
            "scheduler": SCHEDULES,
            "strategy": {"torch": TorchConfig},
            "checkpoint": {"full": FullConfig},
        }

    @hookimpl
    def register_recipe_aliases(self) -> list[RecipeAlias]:
        theirs = {
            "constant_with_warmup": "constant",
            "cosine_warmup_with_min_lr": "cosine_with_min_lr",
            "reduce_lr_on_plateau": "plateau",
            "warmup_stable_decay": "wsd",
        }
        return [
            RecipeAlias(key="sequence_parallel_size", to="strategy.sequence_parallel"),
            RecipeAlias(key="scheduler", to="scheduler", values=theirs),
            RecipeAlias(key="scheduler.type", to="scheduler.type", values=theirs),
            RecipeAlias(key="scheduler.name", to="scheduler.type", values=theirs),
        ]

    @hookimpl
    def make_optimizer(self, config: Any, model: Module) -> Optimizer | None:
        from hooktrain_torch import optimizers, small_states

        if type(config) in small_states.SMALL_STATES.values():
            return small_states.make_small_optimizer(config, model)
        known = type(config) in optimizers.TYPES.values()
        return optimizers.make_optimizer(config, model) if known else None

    @hookimpl
    def make_scheduler(self, config: Any, optimizer: Optimizer, total_steps: int) -> Scheduler | None:
        from hooktrain_torch import schedules

        known = isinstance(config, tuple(schedules.TYPES.values()))
        return schedules.make_schedule(config, optimizer, total_steps) if known else None

    @hookimpl
    def make_strategy(self, config: Any, world: World) -> Strategy | None:
        from hooktrain_torch.strategy_config import TorchConfig

        if not isinstance(config, TorchConfig):
            return None
        from hooktrain_torch.strategy import TorchStrategy

        return TorchStrategy(config, world)

    @hookimpl
    def make_checkpoint_engine(self, config: Any, run_dir: Path, world: World) -> Any:
        from hooktrain_torch.checkpoint_config import FullConfig

        if not isinstance(config, FullConfig):
            return None
        from hooktrain_torch.checkpoint import FullCheckpoint

        engine = FullCheckpoint(config, run_dir, world, self._built)
        self._engines.append(engine)
        return engine

    @hookimpl
    def estimate_memory(self, config: Any, recipe: Recipe, world: World, model: ModelEstimate) -> MemoryEstimate | None:
        from hooktrain_torch.strategy_config import TorchConfig

        if not isinstance(config, TorchConfig):
            return None
        from hooktrain_torch.estimate import estimate_memory

        return estimate_memory(config, recipe, world, model)

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> Iterable[Complaint]:
        from hooktrain_torch import small_states
        from hooktrain_torch.checkpoint_config import FullConfig
        from hooktrain_torch.optimizer_groups import group_complaints
        from hooktrain_torch.optimizers import TYPES
        from hooktrain_torch.strategy_config import TorchConfig

        if type(recipe.optimizer) in TYPES.values():
            yield from group_complaints(recipe.optimizer, TYPES)
        yield from small_states.check(recipe)
        strategy = recipe.strategy
        if isinstance(strategy, TorchConfig) and strategy.data_parallel == "fsdp2" and strategy.dtype == "fp16":
            yield Complaint(
                "strategy.dtype",
                "given fp16 (here or as model.dtype) with data_parallel: fsdp2, expected bf16 or fp32; write one of"
                " them, or data_parallel: ddp",
            )
        for number, config in enumerate(recipe.checkpoint):
            if not isinstance(config, FullConfig) or config.keep_last:
                continue
            for name, value in (("keep_every", config.keep_every), ("keep_best", config.keep_best)):
                if value:
                    yield Complaint(
                        f"checkpoint[{number}].{name}",
                        "has no effect with keep_last: 0, which keeps all; write keep_last: 1 or more",
                    )

    @hookimpl(tryfirst=True)
    def on_resume_start(self, trainer: Trainer) -> None:
        self.on_train_start(trainer)  # before anything is loaded, for all engines

    @hookimpl(tryfirst=True)
    def on_train_start(self, trainer: Trainer) -> None:
        from hooktrain_torch.checkpoint import FullCheckpoint
        from hooktrain_torch.communication import use_communication_hook
        from hooktrain_torch.hyperparameters import as_built

        self._built.update(self._built or as_built(trainer.optimizer, trainer.scheduler))
        for engine in trainer.checkpoint_engines:
            if isinstance(engine, FullCheckpoint):
                engine.remember_built(trainer)
        use_communication_hook(trainer)

    @hookimpl
    def on_exception(self, trainer: Trainer, exception: BaseException) -> None:
        for engine in self._engines:
            if not isinstance(exception, KeyboardInterrupt):
                engine.close(trainer)

    @hookimpl
    def on_teardown(self) -> None:
        for engine in self._engines:
            engine.wait()
        self._engines.clear()
