"""A plugin with a suite that takes no time, because its variants report times of their own."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

from hooktrain import hookimpl
from hooktrain.bench import Case, Suite

__all__ = ["Napping", "naps_of", "runs", "with_seconds"]


class Napping:
    """A plugin as its author would write it."""

    @hookimpl
    def register_benchmarks(self) -> list[Suite]:
        case = Case(name="ten", parameters={"n": 10}, variants={"twice": naps_of(2), "once": naps_of(1)}, rounds=2)
        return [Suite(name="napping", summary="naps", cases=[case])]


def naps_of(seconds: float) -> Callable[..., dict[str, float]]:
    """Return a variant that reports so many seconds, give or take a hundredth."""
    noise = itertools.cycle((1.0, 1.01, 0.99))
    return lambda n=0: {"seconds": seconds * next(noise), "others": 0.0}


def runs(*seconds: float, **more: float) -> list[dict[str, float]]:
    """Return findings of runs on a machine that did nothing else."""
    return [{"seconds": each, "others": 0.0, **more} for each in seconds]


def with_seconds(line: dict[str, Any], variant: str, factor: float) -> dict[str, Any]:
    """Return a line of results in which a variant took so many times as long."""
    changed: dict[str, Any] = json.loads(json.dumps(line))
    values = changed["variants"][variant]["values"]
    values["seconds"] = [factor * value for value in values["seconds"]]
    return changed
