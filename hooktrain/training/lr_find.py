"""A range test of learning rates: the loss while the rate grows from step to step, and a proposal."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from hooktrain.errors import HooktrainError
from hooktrain.markers import hookimpl
from hooktrain.training.short_runs import passed_plugins, without_observers

if TYPE_CHECKING:
    from hooktrain.plugin.manager import PluginHost
    from hooktrain.protocols import Scheduler
    from hooktrain.recipe.model import Recipe
    from hooktrain.training.trainer import Trainer
    from hooktrain.types import Data, World

__all__ = ["LearningRates", "find_learning_rate"]

_WINDOWS = 8
"""Steps of different data, which are repeated: an average over as many does not depend on which of them were hard."""
_DIVERGED = 4.0
"""How many times the lowest smoothed loss ends the test."""
_BELOW = 3.0
"""How far below the rate of the lowest loss the proposal is: losses are still falling there, and rates above it are
where training begins to be unstable."""


@attrs.frozen(kw_only=True)
class LearningRates:
    """The result of a range test.

    Attributes:
        rates: learning rates of the steps.
        losses: of the steps.
        smoothed: averages of each loss and those before it.
        proposal: a learning rate; None where the loss has not fallen.
        note: how the proposal was found, or why there is none.
    """

    rates: Sequence[float]
    losses: Sequence[float]
    smoothed: Sequence[float]
    proposal: float | None
    note: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return attrs.asdict(self)


class _Rising:
    """Multiplies the rate of all groups by the same factor after each step, and ends the run once the loss explodes."""

    def __init__(self, least: float, most: float, steps: int) -> None:
        self.least, self.most, self.steps = least, most, steps
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.smoothed: list[float] = []

    @hookimpl(wrapper=True)
    def make_scheduler(self, optimizer: Any) -> Generator[None, Any, Scheduler]:
        rates = [group["lr"] for group in optimizer.param_groups]
        yield  # which has set those of its own first step
        import torch

        base = rates[0]
        if not base:
            raise HooktrainError("lr-find: optimizer.lr is 0, expected a rate that the test can multiply; write 1e-5")
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = group["initial_lr"] = rate
        growth = (self.most / self.least) ** (1 / max(1, self.steps - 1))
        made: Any = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.least / base * growth**step)
        scheduler: Scheduler = made
        return scheduler

    @hookimpl(wrapper=True)
    def make_data(self, recipe: Recipe, world: World) -> Generator[None, Data | None, Data | None]:
        data = yield
        if data is None or data.loader is not None or recipe.limit_train_batches is not None:
            return data  # a stream has no beginning to go back to
        from hooktrain.training.data_limits import limited

        few = _WINDOWS * recipe.gradient_accumulation_steps
        return limited(data, attrs.evolve(recipe, limit_train_batches=few, limit_eval_batches=None), world)

    @hookimpl
    def on_log(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        if "loss" not in metrics:
            return
        loss = float(metrics["loss"])
        if not math.isfinite(loss):
            trainer.request_stop("the loss is no number", urgent=True)
            return
        self.rates.append(float(metrics["lr"]))
        self.losses.append(loss)
        last = self.losses[-min(_WINDOWS, len(trainer.loader)) :]
        self.smoothed.append(sum(last) / len(last))
        count = len(self.losses)
        lowest = min(self.smoothed)
        diverged = count > 5 and self.smoothed[-1] > lowest + (_DIVERGED - 1) * abs(lowest)
        if count >= self.steps or diverged:
            trainer.request_stop("the range test is over", urgent=True)


def find_learning_rate(
    host: PluginHost, *, least: float = 1e-7, most: float = 1.0, steps: int = 100, name: str = "recipe"
) -> LearningRates:
    """Run a recipe for a few steps with a learning rate that grows, and propose one.

    Nothing is saved or evaluated, and what the run writes is removed.

    Args:
        host: the plugins of the recipe, as ``hooktrain.load`` returns them.
        least: learning rate of the first step.
        most: that of the last.
        steps: optimizer steps.
        name: of the recipe.

    Raises:
        HooktrainError: what stops a run; or that no step has a loss.
    """
    from hooktrain.training.load import load
    from hooktrain.training.trainer import Trainer

    if not 0 < least < most:
        raise HooktrainError(f"lr-find: given rates from {least:g} to {most:g}, expected two that rise, above 0")
    raw, switches = without_observers(host)
    test = _Rising(least, most, steps)
    with tempfile.TemporaryDirectory(prefix="hooktrain-") as folder:
        raw |= {"train_iters": steps, "log_interval": 1, "on_nan": "skip", "run_dir": str(Path(folder) / name)}
        made, own = load(
            raw,
            switches=switches,
            plugins=[*passed_plugins(host), test],
            python_parts=host.manager.get_plugin("python_parts"),
            source=host.recipe_source,
            name=name,
        )
        trainer = Trainer(made, own)
        trainer.run_record.keeps_folder = False
        trainer.run()
    return _result(test.rates, test.losses, test.smoothed)


def _result(rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float]) -> LearningRates:
    if not rates:
        raise HooktrainError("lr-find: no step had a loss that is a number; write a smaller --min")
    at = min(range(len(smoothed)), key=smoothed.__getitem__)
    start = smoothed[0]
    if smoothed[at] >= start or at == 0:
        note = (
            f"the loss has not fallen below {start:.4g}, that of the first step; check the data, or write another --max"
        )
        return LearningRates(rates=rates, losses=losses, smoothed=smoothed, proposal=None, note=note)
    proposal = _rounded(rates[at] / _BELOW)
    rest = "" if at < len(rates) - 1 else "; the loss was still falling there, so that a larger --max may find more"
    note = f"a third of {rates[at]:.2g}, where the loss was lowest ({smoothed[at]:.4g} after {start:.4g}){rest}"
    return LearningRates(rates=rates, losses=losses, smoothed=smoothed, proposal=proposal, note=note)


def _rounded(rate: float) -> float:
    """A rate in two figures."""
    return float(f"{rate:.1e}")
