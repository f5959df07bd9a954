"""Schedule-free optimizers, of the package ``schedulefree``: averages of weights in the place of a schedule.

The model trains on weights that lie between an average and the optimizer's own ones. What is evaluated and exported is
the average, which the optimizer puts into the model meanwhile.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs

from hooktrain import Complaint, PluginInfo, at_least, between, field, hookimpl, save_exports_within
from hooktrain_torch.optimizer_groups import GroupConfig, group_complaints, parameter_groups, require_betas
from hooktrain_torch.schedules import ConstantConfig

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.optim import Optimizer

    from hooktrain import Recipe, Trainer

__all__ = ["ScheduleFreePlugin"]


@attrs.frozen(kw_only=True)
class ScheduleFreeAdamWConfig:
    """AdamW without a schedule (Defazio et al., 2024); needs schedulefree."""

    lr: float = field(default=1e-4, validator=at_least(0), aliases=("learning_rate",))
    """Learning rate, one to ten times that of AdamW with a schedule."""
    weight_decay: float = field(default=0.0, validator=at_least(0))
    """Decay of matrices; biases, norms and other vectors are not decayed."""
    betas: tuple[float, float] = field(default=(0.9, 0.999), validator=require_betas)
    """Where the weights that are trained on lie between both, and decay rate of the squared gradient's mean."""
    eps: float = field(default=1e-8, validator=at_least(0))
    """Added to the denominator."""
    warmup_steps: int = field(default=0, validator=at_least(0))
    """Optimizer steps in which the rate rises, in the place of a schedule's."""
    r: float = field(default=0.0)
    """Power of the step in the weights of the average."""
    weight_lr_power: float = field(default=2.0)
    """Power of the learning rate in the weights of the average."""
    decay_vectors: bool = field(default=False)
    """Whether to decay biases, norms and other vectors as well."""
    groups: tuple[GroupConfig, ...] = field(factory=tuple)
    """Parameters with hyperparameters of their own."""


@attrs.frozen(kw_only=True)
class ScheduleFreeSGDConfig:
    """SGD without a schedule (Defazio et al., 2024); needs schedulefree."""

    lr: float = field(default=1.0, validator=at_least(0), aliases=("learning_rate",))
    """Learning rate, ten to fifty times that of SGD with a schedule."""
    momentum: float = field(default=0.9, validator=between(0, 1))
    """Where the weights that are trained on lie between both; above 0 and below 1."""
    weight_decay: float = field(default=0.0, validator=at_least(0))
    """Decay of matrices; biases, norms and other vectors are not decayed."""
    warmup_steps: int = field(default=0, validator=at_least(0))
    """Optimizer steps in which the rate rises, in the place of a schedule's."""
    r: float = field(default=0.0)
    """Power of the step in the weights of the average."""
    weight_lr_power: float = field(default=2.0)
    """Power of the learning rate in the weights of the average."""
    decay_vectors: bool = field(default=False)
    """Whether to decay biases, norms and other vectors as well."""
    groups: tuple[GroupConfig, ...] = field(factory=tuple)
    """Parameters with hyperparameters of their own."""


TYPES: Mapping[str, type] = {
    "schedule_free_adamw": ScheduleFreeAdamWConfig,
    "schedule_free_sgd": ScheduleFreeSGDConfig,
}
_CLASSES = {ScheduleFreeAdamWConfig: "AdamWScheduleFree", ScheduleFreeSGDConfig: "SGDScheduleFree"}
_OURS = ("decay_vectors", "groups", "weight_decay")


class ScheduleFreePlugin:
    """Registers the optimizers, and has evaluations and exports see the averages."""

    hooktrain_plugin = PluginInfo(
        active_when=lambda recipe: type(recipe.optimizer) in _CLASSES, may_change=("parameters", "optimizer state")
    )

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"optimizer": TYPES}

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> Iterator[Complaint]:
        config = recipe.optimizer
        if type(config) not in _CLASSES:
            return
        yield from group_complaints(config, {})
        name = recipe.types[type(config)]
        if importlib.util.find_spec("schedulefree") is None:
            yield Complaint(
                "optimizer.type",
                f"given {name}, which needs the package schedulefree, and that is not installed; run `pip install"
                " schedulefree`, or write adamw",
                of_machine=True,
            )
        if not isinstance(recipe.scheduler, ConstantConfig):
            given = recipe.types.get(type(recipe.scheduler), "another one")
            yield Complaint(
                "scheduler", f"given {given} with {name}, whose averages replace a schedule; write scheduler: constant"
            )
        if recipe.types.get(type(recipe.strategy)) != "torch":
            yield Complaint("strategy", f"given another one than torch, which {name} needs; write strategy: torch")

    @hookimpl
    def make_optimizer(self, config: Any, model: Module) -> Optimizer | None:
        if type(config) not in _CLASSES:
            return None
        import schedulefree

        given = attrs.asdict(config, recurse=False, filter=lambda item, value: item.name not in _OURS)
        made: Any = getattr(schedulefree, _CLASSES[type(config)])(parameter_groups(config, model), **given)
        made.train()
        optimizer: Optimizer = made
        return optimizer

    @hookimpl(wrapper=True)
    def run_evaluate(self, trainer: Trainer) -> Generator[None, Any, Any]:
        with _averages(trainer):
            return (yield)

    @hookimpl(wrapper=True)
    def save_checkpoint(self, trainer: Trainer) -> Generator[None, Any, Any]:
        return (yield from save_exports_within(trainer, _averages(trainer)))

    @hookimpl(trylast=True)
    def on_train_end(self, trainer: Trainer) -> None:
        optimizer: Any = trainer.optimizer
        optimizer.eval()  # what is done with the model afterwards is done with the average


@contextmanager
def _averages(trainer: Trainer) -> Iterator[None]:
    """Have the model hold the averages inside; the weights that are trained on come back bit by bit."""
    optimizer: Any = trainer.optimizer
    if not optimizer.param_groups[0]["train_mode"]:  # the run is over
        yield
        return
    kept = [(weight, weight.detach().clone()) for group in optimizer.param_groups for weight in group["params"]]
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()
        for weight, value in kept:
            weight.data.copy_(value)  # the way back computes them, with errors of rounding
