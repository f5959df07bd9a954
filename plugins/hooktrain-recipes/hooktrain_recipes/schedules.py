"""Learning-rate schedules by every name that transformers has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from hooktrain import Collector, did_you_mean
from hooktrain_recipes.reasons import CONTRADICTION, SCHEDULE
from hooktrain_recipes.values import at_least_one, number, positive, share, text, whole

__all__ = ["SCHEDULES", "ScheduleKeys", "set_schedule"]

SCHEDULES: Mapping[str, str] = {
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_min_lr": "cosine",
    "cosine_warmup_with_min_lr": "cosine",
    "cosine_with_restarts": "cosine_with_restarts",
    "polynomial": "polynomial",
    "inverse_sqrt": "inverse_sqrt",
    "reduce_lr_on_plateau": "plateau",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "warmup_stable_decay": "wsd",
}
"""The schedule here, by its name there."""

_OTHERS = ("one_cycle", "rex", "greedy")
_WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau")
_SHAPES = {"linear": "linear", "1-sqrt": "sqrt", "cosine": "cosine"}


def _shape_of(shape: Any) -> str:
    if not isinstance(shape, str) or shape not in _SHAPES:
        raise ValueError(f"given {shape!r:.40}, expected one of {', '.join(_SHAPES)}")
    return _SHAPES[shape]


_ARGUMENTS: Mapping[str, Mapping[str, tuple[str, Callable[[Any], Any]]]] = {
    "cosine_with_min_lr": {"min_lr_rate": ("min_lr_ratio", share)},
    "cosine_warmup_with_min_lr": {"min_lr_rate": ("min_lr_ratio", share)},
    "cosine_with_restarts": {"num_cycles": ("num_cycles", at_least_one)},
    "polynomial": {"power": ("power", positive)},
    "inverse_sqrt": {"timescale": ("timescale", at_least_one)},
    "warmup_stable_decay": {
        "min_lr_ratio": ("min_lr_ratio", share),
        "num_decay_steps": ("decay_steps", whole),
        "decay_type": ("decay_shape", _shape_of),
    },
    "reduce_lr_on_plateau": {
        "mode": ("mode", text),
        "factor": ("factor", share),
        "patience": ("patience", whole),
        "threshold": ("threshold", number),
        "cooldown": ("cooldown", whole),
    },
}
"""Arguments of a schedule there, with our keys."""
_LEAST = {"polynomial": "lr_end", "reduce_lr_on_plateau": "min_lr"}
"""The argument with the rate at the end, where it is not ``min_lr`` of a cosine."""


@attrs.frozen(kw_only=True)
class ScheduleKeys:
    """The keys of the other program.

    Attributes:
        name: of the schedule.
        arguments: mapping of its own arguments.
        steps: steps of the warm-up.
        ratio: its share of the run.
        rate: the learning rate, of which a least one is a share.
    """

    name: str = "lr_scheduler_type"
    arguments: str = "lr_scheduler_kwargs"
    steps: str = "warmup_steps"
    ratio: str = "warmup_ratio"
    rate: str = "learning_rate"


def set_schedule(found: Collector, keys: ScheduleKeys, default: str, program: str) -> None:
    """Set ``scheduler`` and account for the keys that say it.

    Args:
        found: the translation.
        keys: their names there.
        default: the schedule of a recipe that names none.
        program: the other program, for notes.
    """
    name = str(found.get(keys.name, default)).lower()
    ours = SCHEDULES.get(name)
    if ours is None:
        if name in _OTHERS:
            SCHEDULE.refuse(found, keys.name)
        else:
            close = did_you_mean(name, [*SCHEDULES, *_OTHERS])
            found.unsupported(keys.name, f"unknown schedule '{name}'{close}", SCHEDULE.remedy)
        ours = "cosine"
    elif found.get(keys.name) is None:
        found.default("scheduler.type", ours, f"the default of {program}")
        found.ignored(keys.name, "null is the default") if keys.name in found else None
    else:
        found.set("scheduler.type", ours)
        found.translated(keys.name, "scheduler.type")
    if name in _WITHOUT_WARMUP:
        for key in (keys.steps, keys.ratio):
            if key in found:
                found.ignored(key, f"`{name}` has no warm-up there")
    else:
        _warmup(found, keys, program)
    _arguments(found, keys, name)


def _warmup(found: Collector, keys: ScheduleKeys, program: str) -> None:
    steps, ratio = found.get(keys.steps), found.get(keys.ratio)
    if steps and ratio:
        CONTRADICTION.refuse(found, keys.steps, keys.ratio)
        found.copy(keys.ratio, "scheduler.warmup_ratio", share)
        return
    if isinstance(steps, float) and 0 < steps < 1:
        found.copy(keys.steps, "scheduler.warmup_ratio", share)
    elif steps is not None and (steps or ratio is None):
        found.copy(keys.steps, "scheduler.warmup_steps", whole)
    elif keys.steps in found:
        found.ignored(keys.steps, "none, which is the default")
    if ratio is not None and not steps:
        found.copy(keys.ratio, "scheduler.warmup_ratio", share)
    elif keys.ratio in found:
        found.ignored(keys.ratio, "none, which is the default")
    if not found.has("scheduler.warmup_ratio") and not found.has("scheduler.warmup_steps"):
        found.default("scheduler.warmup_ratio", 0.0, f"the default of {program}")


def _arguments(found: Collector, keys: ScheduleKeys, name: str) -> None:
    """Account for the arguments of a schedule."""
    given = found.get(keys.arguments)
    if name == "polynomial" and not (isinstance(given, Mapping) and "lr_end" in given):
        try:
            least = _share_of(1e-7, _rate(found, keys))
        except ValueError:  # the rate's own key says so
            least = 0.0
        found.default("scheduler.min_lr_ratio", least, "1e-7 of the learning rate, the default of transformers")
    if name == "warmup_stable_decay" and not (isinstance(given, Mapping) and "decay_type" in given):
        found.default("scheduler.decay_shape", "cosine", "the default of transformers")
    if given is not None and not isinstance(given, Mapping):
        found.unsupported(keys.arguments, "expected a mapping of the schedule's arguments", "write {name: value}")
        return
    if not given:
        if keys.arguments in found:
            found.ignored(keys.arguments, "none, which is the default")
        return
    for argument, value in given.items():
        key = f"{keys.arguments}.{argument}"
        if value is None:
            found.ignored(key, "null is the default")
        elif argument in _ARGUMENTS.get(name, ()):
            to, convert = _ARGUMENTS[name][argument]
            found.copy(key, f"scheduler.{to}", convert)
        elif argument == _LEAST.get(name, "min_lr" if "min_lr" in name else ""):
            found.copy(key, "scheduler.min_lr_ratio", lambda least: _share_of(least, _rate(found, keys)))
        elif name == "warmup_stable_decay" and argument == "num_stable_steps":
            found.ignored(key, "the rate is stable until the steps of the decay begin")
        else:
            SCHEDULE.refuse(found, key)


def _rate(found: Collector, keys: ScheduleKeys) -> Any:
    return found.recipe.get("optimizer", {}).get("lr", found.get(keys.rate))


def _share_of(least: Any, rate: Any) -> float:
    return share(number(least) / positive(rate))
