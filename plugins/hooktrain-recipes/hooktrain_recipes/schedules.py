"""Learning-rate schedules by every name that transformers has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from hooktrain import Collector, did_you_mean
from hooktrain_recipes.reasons import CONTRADICTION, SCHEDULE
from hooktrain_recipes.values import number, positive, share, whole

__all__ = ["SCHEDULES", "ScheduleKeys", "set_schedule"]

SCHEDULES: Mapping[str, str] = {
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_min_lr": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "warmup_stable_decay": "wsd",
}
"""The schedule here, by its name there."""

_OTHERS = (
    "cosine_with_restarts", "polynomial", "inverse_sqrt", "reduce_lr_on_plateau", "cosine_warmup_with_min_lr",
    "one_cycle", "rex", "greedy",
)  # fmt: skip


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
    if name == "constant":
        for key in (keys.steps, keys.ratio):
            if key in found:
                found.ignored(key, "`constant` has no warm-up there")
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
        elif (name == "cosine_with_min_lr" and argument == "min_lr_rate") or (
            name == "warmup_stable_decay" and argument == "min_lr_ratio"
        ):
            found.copy(key, "scheduler.min_lr_ratio", share)
        elif name == "cosine_with_min_lr" and argument == "min_lr":
            found.copy(key, "scheduler.min_lr_ratio", lambda least: _share_of(least, found.get(keys.rate)))
        elif name == "warmup_stable_decay" and argument == "num_decay_steps":
            found.copy(key, "scheduler.decay_steps", whole)
        elif name == "warmup_stable_decay" and argument == "num_stable_steps":
            found.ignored(key, "the rate is stable until the steps of the decay begin")
        elif name == "warmup_stable_decay" and argument == "decay_type" and value in ("linear", "1-sqrt"):
            found.copy(key, "scheduler.decay_shape", lambda shape: "linear" if shape == "linear" else "sqrt")
        else:
            SCHEDULE.refuse(found, key)
    if name == "warmup_stable_decay" and "decay_type" not in given:
        SCHEDULE.refuse(found, keys.name)  # it falls as a cosine there


def _share_of(least: Any, rate: Any) -> float:
    return share(number(least) / positive(rate))
