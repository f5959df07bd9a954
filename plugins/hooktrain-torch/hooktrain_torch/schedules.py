"""Learning-rate schedules as pure functions of the optimizer step, so that a resume needs only a number."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs

from hooktrain import at_least, between, field, one_of

if TYPE_CHECKING:
    from torch.optim import Optimizer

__all__ = ["ConstantConfig", "CosineConfig", "LinearConfig", "Schedule", "WSDConfig", "make_schedule"]


@attrs.frozen(kw_only=True)
class ConstantConfig:
    """A warm-up, then the optimizer's learning rate throughout."""

    warmup_ratio: float = field(default=0.0, validator=between(0, 1))
    """Share of the run in which the rate rises linearly from its first fraction to the full rate."""
    warmup_steps: int | None = field(default=None, validator=at_least(0))
    """The same in optimizer steps; wins over ``warmup_ratio``."""


@attrs.frozen(kw_only=True)
class LinearConfig:
    """A warm-up, then a straight line down to ``min_lr_ratio`` of the learning rate."""

    warmup_ratio: float = field(default=0.05, validator=between(0, 1))
    """Share of the run in which the rate rises linearly from its first fraction to the full rate."""
    warmup_steps: int | None = field(default=None, validator=at_least(0))
    """The same in optimizer steps; wins over ``warmup_ratio``."""
    min_lr_ratio: float = field(default=0.0, validator=between(0, 1))
    """Where the rate ends, as a share of the optimizer's."""


@attrs.frozen(kw_only=True)
class CosineConfig:
    """A warm-up, then half a cosine down to ``min_lr_ratio`` of the learning rate."""

    warmup_ratio: float = field(default=0.05, validator=between(0, 1))
    """Share of the run in which the rate rises linearly from its first fraction to the full rate."""
    warmup_steps: int | None = field(default=None, validator=at_least(0))
    """The same in optimizer steps; wins over ``warmup_ratio``."""
    min_lr_ratio: float = field(default=0.0, validator=between(0, 1))
    """Where the rate ends, as a share of the optimizer's."""


@attrs.frozen(kw_only=True)
class WSDConfig:
    """Warm-up, stable, decay: the full rate until the last part of the run, then down to ``min_lr_ratio`` of it."""

    warmup_ratio: float = field(default=0.05, validator=between(0, 1))
    """Share of the run in which the rate rises linearly from its first fraction to the full rate."""
    warmup_steps: int | None = field(default=None, validator=at_least(0))
    """The same in optimizer steps; wins over ``warmup_ratio``."""
    decay_ratio: float = field(default=0.1, validator=between(0, 1))
    """Share of the run, at its end, in which the rate falls."""
    decay_steps: int | None = field(default=None, validator=at_least(0))
    """The same in optimizer steps; wins over ``decay_ratio``."""
    decay_shape: str = field(default="linear", validator=one_of("linear", "sqrt"))
    """Form of the fall: a line, or one minus the square root."""
    min_lr_ratio: float = field(default=0.0, validator=between(0, 1))
    """Where the rate ends, as a share of the optimizer's."""


class Schedule:
    """Sets each parameter group's learning rate to its first value times ``factor(step)``.

    torch's LambdaLR does the same at ten times the cost, which counts in a small model's step.

    Attributes:
        warmup_steps: optimizer steps in which the rate rises.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float], warmup_steps: int) -> None:
        self.optimizer, self.factor, self.warmup_steps = optimizer, factor, warmup_steps
        self.finished = 0
        self._applied: float | None = None
        self.base_lrs = [float(group["lr"]) for group in optimizer.param_groups]
        self._apply()

    def step(self) -> None:
        """Advance by one optimizer step and set the rates."""
        self.finished += 1
        self._apply()

    def _apply(self) -> None:
        factor = self.factor(self.finished)
        if factor != self._applied:  # most steps of a constant or stable phase
            self._applied = factor
            for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
                group["lr"] = base * factor

    def get_last_lr(self) -> list[float]:
        """Return the rate of each parameter group for the next step."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        return {"finished": self.finished, "base_lrs": self.base_lrs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.finished, self.base_lrs = state_dict["finished"], state_dict["base_lrs"]
        self._applied = None  # a loaded optimizer has rates of its own
        self._apply()


def make_schedule(config: Any, optimizer: Optimizer, total_steps: int) -> Schedule:
    """Make the schedule of a config.

    Args:
        config: one of the config classes of this module.
        optimizer: has the rates to set.
        total_steps: optimizer steps of the run.
    """
    warmup = config.warmup_steps
    if warmup is None:
        warmup = math.ceil(total_steps * config.warmup_ratio)
    return Schedule(optimizer, _warmed(_after_warmup(config, warmup, total_steps), warmup), warmup)


def _warmed(after: Callable[[int], float], warmup: int) -> Callable[[int], float]:
    # the first step has a rate above zero: at zero it would train nothing
    return lambda step: (step + 1) / warmup if step < warmup else after(step)


def _after_warmup(config: Any, warmup: int, total: int) -> Callable[[int], float]:
    if isinstance(config, ConstantConfig):
        return lambda step: 1.0
    least: float = config.min_lr_ratio
    if isinstance(config, WSDConfig):
        decay = config.decay_steps if config.decay_steps is not None else math.ceil(total * config.decay_ratio)
        begin = max(total - decay, warmup)
        fall = math.sqrt if config.decay_shape == "sqrt" else float
        return lambda step: least + (1.0 - least) * (1.0 - fall(_share(step, begin, total)))
    if isinstance(config, LinearConfig):
        return lambda step: least + (1.0 - least) * (1.0 - _share(step, warmup, total))
    return lambda step: least + (1.0 - least) * 0.5 * (1.0 + math.cos(math.pi * _share(step, warmup, total)))


def _share(step: int, begin: int, end: int) -> float:
    """Return how far a step is on the way from ``begin`` to ``end``, from 0 to 1."""
    return min(1.0, max(0.0, (step - begin) / max(1, end - begin)))
