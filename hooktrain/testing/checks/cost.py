"""What a plugin costs a step: runs with it and without take turns, so that a machine's moods meet both."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from hooktrain.hookspecs import BOUNDARIES, SEGMENTS
from hooktrain.ledger import Cost, Ledger
from hooktrain.markers import hookimpl
from hooktrain.testing.checks.kit import Broken, Kit, Unjudged
from hooktrain.testing.checks.observing import changes_gradients, require_removable
from hooktrain.testing.checks.subject import Spec, prepared
from hooktrain.trainer import Trainer

__all__ = ["check_cost"]

_ROUNDS, _STEPS = 8, 30
_IN_STEPS = (
    *(hook for hook in BOUNDARIES if "step" in hook or "microbatch" in hook),
    *("on_log", "collect_metrics"),
    *SEGMENTS,
)
_LONGEST = 8.0
"""Seconds after which no further round is begun."""


def check_cost(kit: Kit) -> None:
    """A step costs no more than the budget: microseconds for each call of a hook, or a share of the step."""
    require_removable(kit)
    variation = "idle" if changes_gradients(kit) else "beside"  # what it does to the training is no overhead
    budget, share = _budget(kit.options.budget)
    for attempt in range(2):
        rounds = _ROUNDS * (1 + attempt)
        done = kit.start("cost", f"{__name__}:_measured", spec=kit.spec, rounds=rounds, variation=variation)
        found = kit.need(done, "runs with the plugin and without")
        allowed = budget * found["step"] if share else budget * 1e-6 * max(found["calls"], 1.0)
        cost, noise = found["cost"], found["noise"]
        numbers = (
            f"{cost * 1e6:.1f} microseconds a step (give or take {noise * 1e6:.1f}) with {found['calls']:.1f} calls of"
            f" hooks in it, of {found['step'] * 1e6:.0f} without the plugin; {allowed * 1e6:.1f} are allowed"
        )
        kit.notes["cost"] = numbers
        if noise <= allowed and cost + noise <= allowed:
            return
        if cost - 2 * noise > allowed:
            raise Broken(
                f"costs {numbers}; the hooks that take longest: {found['hooks']}",
                "the engine makes a dozen calls a step, and small models take less than a millisecond for one",
                "move work out of the step: to on_train_start, to on_log, or to every n-th step; a plugin that needs"
                " more says so with conformance(budget=...), in microseconds for each call of a hook"
                " or as a share ('5%')",
            )
        if noise > 4 * allowed:
            break
    raise Unjudged(f"this machine is too noisy to judge the cost: {numbers}")


def _budget(given: float | str) -> tuple[float, bool]:
    """The budget, and whether it is a share of the step."""
    if isinstance(given, str):
        return float(given.removesuffix("%")) / 100, True
    return float(given), False


class _Stopwatch:
    """Times each step, everything that is announced in it included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    @hookimpl(tryfirst=True)
    def on_train_start(self, trainer: Trainer) -> None:
        step, seconds = trainer.step, self.seconds

        def timed(batches: Any) -> Any:
            began = time.perf_counter()
            output = step(batches)
            seconds.append(time.perf_counter() - began)
            return output

        trainer.step = timed  # type: ignore[method-assign]


def _measured(spec: Spec, rounds: int, variation: str) -> dict[str, Any]:
    """Cost of a step, and how sure that is; in a process of its own."""
    torch.set_num_threads(1)
    _steps(spec, "without")
    costs: list[Cost] = []
    _steps(spec, variation, costs)
    apart: list[float] = []
    again: list[float] = []
    base: list[float] = []
    until = time.monotonic() + _LONGEST
    while len(apart) < rounds and (len(apart) < 3 or time.monotonic() < until):
        first, second, third = (_steps(spec, name) for name in ("without", variation, "without"))
        apart.append(second - (first + third) / 2)
        again.append((third - first) / 2)
        base.append(min(first, third))
    # the spread of what should be equal, and of the differences; a median is a quarter less sure than a mean
    noise = 1.25 * max(_spread(apart), _spread(again)) / len(apart) ** 0.5
    each = ((cost.nanoseconds / cost.calls / 1e3, cost.hook) for cost in costs if cost.calls)
    slowest = sorted(each, reverse=True)[:3]
    return {
        "cost": statistics.median(apart),
        "noise": noise,
        "step": statistics.median(base),
        "calls": sum(cost.calls for cost in costs) / _STEPS,
        "hooks": ", ".join(f"{hook} {found:.1f} microseconds a call" for found, hook in slowest) or "none",
    }


def _spread(values: list[float]) -> float:
    """A standard deviation that a few odd values do not move."""
    middle = statistics.median(values)
    return 1.4826 * statistics.median(abs(value - middle) for value in values)


def _steps(spec: Spec, variation: str, costs: list[Cost] | None = None) -> float:
    """The median time of a step of one run; with ``costs`` what the plugin's hooks in steps took is added there."""
    watch = _Stopwatch()
    overrides = {"run_dir": "run", "train_iters": _STEPS, "epochs": None, "checkpoint": [], "eval_interval": 0}
    made = prepared(spec, variation, watch, overrides=overrides)
    ledger = Ledger()
    if costs is not None:
        made.host.measure(ledger)
    Trainer(made.recipe, made.host).run()
    if costs is not None:
        costs += [cost for (name, hook), cost in ledger.costs.items() if name == made.name and hook in _IN_STEPS]
    return statistics.median(watch.seconds[2:])
