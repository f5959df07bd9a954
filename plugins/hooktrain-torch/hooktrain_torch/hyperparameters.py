"""Hyperparameters of an optimizer as the recipe sets them, as opposed to what they become during the run.

A resume continues with those of the checkpoint, since schedules and plugins change them on the way. Where the recipe
itself sets another value than it did for the checkpoint, and ``allow_changes`` permits it, the recipe's value counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from hooktrain import SchedulerDefaults, member
from hooktrain_torch.schedules import Schedule

__all__ = ["as_built", "require_like", "take_changed"]

_PLAIN = (type(None), bool, int, float, str, tuple, list)


def as_built(optimizer: Optimizer, scheduler: Any) -> dict[str, Any]:
    """Return the hyperparameters before the first step, as plain values for :func:`take_changed`.

    Args:
        optimizer: has made no step and loaded nothing.
        scheduler: of the optimizer, likewise.
    """
    groups = [
        {key: value for key, value in group.items() if key not in ("params", "lr") and type(value) in _PLAIN}
        for group in optimizer.param_groups
    ]
    rates = member(scheduler, SchedulerDefaults, "base_lrs")
    return {"groups": groups, "base_lrs": None if rates is None else [float(rate) for rate in rates]}


def take_changed(optimizer: Optimizer, scheduler: Any, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Set the hyperparameters that the recipe has changed; all others stay as loaded.

    Args:
        optimizer: has loaded a checkpoint.
        scheduler: of the optimizer, likewise.
        then: what :func:`as_built` returned in the run that saved the checkpoint.
        now: what it returned in this run.
    """
    for group, old, new in zip(optimizer.param_groups, then["groups"], now["groups"], strict=True):
        group.update({key: value for key, value in new.items() if key not in old or old[key] != value})
    old_rates, rates = then["base_lrs"], now["base_lrs"]
    if rates is None or old_rates is None or rates == old_rates:
        return
    scheduler.base_lrs = list(rates)
    if isinstance(scheduler, Schedule):
        scheduler.load_state_dict(scheduler.state_dict())  # which sets the rates
        return
    for group, old, new in zip(optimizer.param_groups, old_rates, rates, strict=True):
        if old:  # torch's own schedules continue from the rate that they find
            group["lr"] = group["lr"] * (new / old)


def require_like(optimizer: Optimizer, built: Mapping[str, Any]) -> None:
    """Refuse loaded hyperparameters of other types than those that the optimizer was built with.

    Args:
        optimizer: has loaded a checkpoint.
        built: what :func:`as_built` returned.

    Raises:
        ValueError: naming the first of them.
    """
    for group, before in zip(optimizer.param_groups, built["groups"], strict=True):
        for key, value in (*before.items(), ("lr", 0.0)):
            found = group.get(key)
            if found is not None and value is not None and _kind(found) != _kind(value):
                raise ValueError(f"the optimizer's {key} is {str(found)[:40]!r}, expected {_kind(value)}")


def _kind(value: Any) -> str:
    if type(value) in (int, float) or isinstance(value, Tensor):
        return "a number"
    return "a list" if isinstance(value, (list, tuple)) else type(value).__name__
