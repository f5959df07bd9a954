"""Learning-rate schedules as pure functions of the optimizer step, so that a resume needs only a number."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from hooktrain import HooktrainError, Scheduler, at_least, between, field, is_better, one_of

if TYPE_CHECKING:
    from torch.optim import Optimizer

__all__ = [
    "TYPES",
    "AnyScheduleConfig",
    "ConstantConfig",
    "CosineConfig",
    "CosineMinConfig",
    "InverseSqrtConfig",
    "LinearConfig",
    "PlateauConfig",
    "PlateauSchedule",
    "PolynomialConfig",
    "RestartsConfig",
    "Schedule",
    "WSDConfig",
    "make_schedule",
]


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
    decay_shape: str = field(default="linear", validator=one_of("linear", "sqrt", "cosine"))
    """Form of the fall: a line, one minus the square root, or half a cosine."""
    min_lr_ratio: float = field(default=0.0, validator=between(0, 1))
    """Where the rate ends, as a share of the optimizer's."""


@attrs.frozen(kw_only=True)
class CosineMinConfig(CosineConfig):
    """``cosine`` under transformers' name, which requires the rate at which it ends."""

    min_lr_ratio: float = field(validator=between(0, 1), aliases=("min_lr_rate",))
    """Where the rate ends, as a share of the optimizer's."""


@attrs.frozen(kw_only=True)
class RestartsConfig:
    """A warm-up, then half a cosine several times over, each from the full rate."""

    warmup_ratio: float = field(default=0.05, validator=between(0, 1))
    """Share of the run in which the rate rises linearly from its first fraction to the full rate."""
    warmup_steps: int | None = field(default=None, validator=at_least(0))
    """The same in optimizer steps; wins over ``warmup_ratio``."""
    num_cycles: int = field(default=1, validator=at_least(1))
    """How often the rate falls."""
    min_lr_ratio: float = field(default=0.0, validator=between(0, 1))
    """Where the rate ends, as a share of the optimizer's."""


@attrs.frozen(kw_only=True)
class PolynomialConfig:
    """A warm-up, then a power of the share of the run that is left."""

    warmup_ratio: float = field(default=0.05, validator=between(0, 1))
    """Share of the run in which the rate rises linearly from its first fraction to the full rate."""
    warmup_steps: int | None = field(default=None, validator=at_least(0))
    """The same in optimizer steps; wins over ``warmup_ratio``."""
    power: float = field(default=1.0, validator=at_least(0))
    """The power; 1 is a straight line."""
    min_lr_ratio: float = field(default=0.0, validator=between(0, 1))
    """Where the rate ends, as a share of the optimizer's."""


@attrs.frozen(kw_only=True)
class InverseSqrtConfig:
    """A warm-up, then the inverse square root of the steps, which needs no end of the run."""

    warmup_ratio: float = field(default=0.05, validator=between(0, 1))
    """Share of the run in which the rate rises linearly from its first fraction to the full rate."""
    warmup_steps: int | None = field(default=None, validator=at_least(0))
    """The same in optimizer steps; wins over ``warmup_ratio``."""
    timescale: int | None = field(default=None, validator=at_least(1))
    """Steps in which the rate falls to 1/sqrt(2) after the warm-up; those of the warm-up when omitted, and 10,000 where
    there is none."""


@attrs.frozen(kw_only=True)
class PlateauConfig:
    """A warm-up, then the full rate, reduced each time a metric of the evaluation has stopped to improve."""

    warmup_ratio: float = field(default=0.0, validator=between(0, 1))
    """Share of the run in which the rate rises linearly from its first fraction to the full rate."""
    warmup_steps: int | None = field(default=None, validator=at_least(0))
    """The same in optimizer steps; wins over ``warmup_ratio``."""
    metric: str = field(default="")
    """Such as ``eval/held_out/loss``; the loss of the only evaluation set when omitted."""
    mode: str = field(default="min", validator=one_of("min", "max"))
    """Whether lower or higher values are better."""
    factor: float = field(default=0.1, validator=between(0, 1))
    """What the rate is multiplied by."""
    patience: int = field(default=10, validator=at_least(0))
    """Evaluations without improvement that do not reduce the rate yet."""
    threshold: float = field(default=1e-4, validator=at_least(0))
    """Share of the best value by which another one has to be better."""
    cooldown: int = field(default=0, validator=at_least(0))
    """Evaluations after a reduction that do not count."""
    min_lr_ratio: float = field(default=0.0, validator=between(0, 1))
    """Where the rate ends, as a share of the optimizer's."""


@attrs.frozen(kw_only=True)
class AnyScheduleConfig:
    """Any scheduler class, by its name in ``torch.optim.lr_scheduler`` or its dotted path."""

    class_path: str = field()
    """Such as ``OneCycleLR``, or ``package.module.Class``."""
    arguments: Mapping[str, Any] = field(factory=dict)
    """Keyword arguments of the class; the text ``total_steps`` as a value stands for the run's optimizer steps."""


TYPES: Mapping[str, type] = {
    "constant": ConstantConfig,
    "linear": LinearConfig,
    "cosine": CosineConfig,
    "cosine_with_min_lr": CosineMinConfig,
    "cosine_with_restarts": RestartsConfig,
    "polynomial": PolynomialConfig,
    "inverse_sqrt": InverseSqrtConfig,
    "wsd": WSDConfig,
    "plateau": PlateauConfig,
    "torch": AnyScheduleConfig,
}
"""Config classes of this module, by the name under which a recipe selects them."""


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


class PlateauSchedule(Schedule):
    """A schedule that is reduced when a metric stops to improve, as torch's ReduceLROnPlateau counts it.

    Args:
        optimizer: has the rates to set.
        config: when and how far it is reduced.
        warmup: optimizer steps in which the rate rises.
    """

    def __init__(self, optimizer: Optimizer, config: PlateauConfig, warmup: int) -> None:
        self.config = config
        self.best = -math.inf if config.mode == "max" else math.inf
        self.reduction, self.bad, self.cooling = 1.0, 0, 0
        super().__init__(optimizer, _warmed(lambda step: self.reduction, warmup), warmup)

    def evaluated(self, value: float) -> bool:
        """Take in a value of the metric; returns whether the rate is reduced."""
        config = self.config
        if is_better(value, self.best, config.threshold, config.mode):
            self.best, self.bad = value, 0
        else:
            self.bad += 1
        if self.cooling:
            self.cooling, self.bad = self.cooling - 1, 0
        if self.bad <= config.patience:
            return False
        before, self.reduction = self.reduction, max(self.reduction * config.factor, config.min_lr_ratio)
        self.cooling, self.bad = config.cooldown, 0
        self._apply()
        return self.reduction < before

    def state_dict(self) -> dict[str, Any]:
        own = {"reduction": self.reduction, "best": self.best, "bad": self.bad, "cooling": self.cooling}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.reduction, self.best = state_dict["reduction"], state_dict["best"]
        self.bad, self.cooling = state_dict["bad"], state_dict["cooling"]
        super().load_state_dict(state_dict)


def make_schedule(config: Any, optimizer: Optimizer, total_steps: int) -> Scheduler:
    """Make the schedule of a config.

    Args:
        config: one of the config classes of this module.
        optimizer: has the rates to set.
        total_steps: optimizer steps of the run.

    Raises:
        HooktrainError: a class cannot be found or made.
    """
    if isinstance(config, AnyScheduleConfig):
        return _any(config, optimizer, total_steps)
    warmup = config.warmup_steps
    if warmup is None:
        warmup = math.ceil(total_steps * config.warmup_ratio)
    if isinstance(config, PlateauConfig):
        return PlateauSchedule(optimizer, config, warmup)
    return Schedule(optimizer, _warmed(_after_warmup(config, warmup, total_steps), warmup), warmup)


def _warmed(after: Callable[[int], float], warmup: int) -> Callable[[int], float]:
    # the first step has a rate above zero: at zero it would train nothing
    return lambda step: (step + 1) / warmup if step < warmup else after(step)


def _after_warmup(config: Any, warmup: int, total: int) -> Callable[[int], float]:
    if isinstance(config, ConstantConfig):
        return lambda step: 1.0
    if isinstance(config, InverseSqrtConfig):
        timescale = config.timescale or warmup or 10_000
        return lambda step: 1.0 / math.sqrt((step - warmup + timescale) / timescale)
    least: float = config.min_lr_ratio
    if isinstance(config, WSDConfig):
        decay = config.decay_steps if config.decay_steps is not None else math.ceil(total * config.decay_ratio)
        begin = max(total - decay, warmup)
        fall = _FALLS[config.decay_shape]
        return lambda step: least + (1.0 - least) * (1.0 - fall(_share(step, begin, total)))
    if isinstance(config, LinearConfig):
        return lambda step: least + (1.0 - least) * (1.0 - _share(step, warmup, total))
    if isinstance(config, PolynomialConfig):
        return lambda step: least + (1.0 - least) * (1.0 - _share(step, warmup, total)) ** config.power
    cycles = config.num_cycles if isinstance(config, RestartsConfig) else 1
    return lambda step: least + (1.0 - least) * 0.5 * (1.0 + math.cos(math.pi * _cycle(step, warmup, total, cycles)))


def _cycle(step: int, begin: int, end: int, cycles: int) -> float:
    """Return how far a step is in its cycle, from 0 to 1."""
    share = _share(step, begin, end)
    return share if cycles == 1 or share == 1.0 else (cycles * share) % 1.0


_FALLS: Mapping[str, Callable[[float], float]] = {
    "linear": float,
    "sqrt": math.sqrt,
    "cosine": lambda share: 0.5 * (1.0 - math.cos(math.pi * share)),
}
"""How far each shape of ``wsd`` has fallen, from 0 to 1."""


def _share(step: int, begin: int, end: int) -> float:
    """Return how far a step is on the way from ``begin`` to ``end``, from 0 to 1."""
    return min(1.0, max(0.0, (step - begin) / max(1, end - begin)))


def _any(config: AnyScheduleConfig, optimizer: Optimizer, total_steps: int) -> Scheduler:
    from torch.optim.lr_scheduler import LRScheduler

    from hooktrain_torch.lookup import find_class

    kind = find_class(config.class_path, "torch.optim.lr_scheduler", "scheduler.class_path")
    if not (isinstance(kind, type) and issubclass(kind, LRScheduler)):
        raise HooktrainError(
            f"scheduler.class_path: given '{config.class_path}', which is no scheduler; give a subclass of torch's"
            " LRScheduler"
        )
    if "metrics" in inspect.signature(kind.step).parameters:
        raise HooktrainError(
            f"scheduler.class_path: given '{config.class_path}', whose step needs a metric; write type: plateau, which"
            " gets one from the evaluation"
        )
    given = {key: total_steps if value == "total_steps" else value for key, value in config.arguments.items()}
    try:
        made: Any = kind(optimizer, **given)
    except (TypeError, ValueError) as problem:
        raise HooktrainError(
            f"scheduler: {config.class_path} refuses its arguments ({problem}); correct scheduler.arguments"
        ) from problem
    return made  # type: ignore[no-any-return]
