"""An optimizer's hyperparameters as the recipe has them, told apart from what became of them in the run.

A resume goes on with those of the checkpoint, since schedules and plugins change them on the way. Where the recipe
itself gives others than it gave then, and the run may go on all the same, what the recipe gives now is meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from hooktrain_torch.schedules import Schedule

__all__ = ["as_built", "take_changed"]

_PLAIN = (type(None), bool, int, float, str, tuple, list)


def as_built(optimizer: Optimizer, scheduler: Any) -> dict[str, Any]:
    """The hyperparameters before the first step: plain values, for :func:`take_changed`.

    Args:
        optimizer: no step of which was made, and into which nothing was loaded.
        scheduler: over it, likewise.
    """
    groups = [
        {key: value for key, value in group.items() if key not in ("params", "lr") and type(value) in _PLAIN}
        for group in optimizer.param_groups
    ]
    rates = getattr(scheduler, "base_lrs", None)
    return {"groups": groups, "base_lrs": None if rates is None else [float(rate) for rate in rates]}


def take_changed(optimizer: Optimizer, scheduler: Any, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Set what the recipe gives now and gave otherwise then; everything else stays as it was loaded.

    Args:
        optimizer: into which a checkpoint was loaded.
        scheduler: over it, likewise.
        then: what :func:`as_built` gave in the run that saved the checkpoint.
        now: what it gave in this run.
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
        if old:  # torch's own schedules go on from the rate that they find
            group["lr"] = group["lr"] * (new / old)
