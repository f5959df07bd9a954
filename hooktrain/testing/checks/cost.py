"""What a plugin costs a step: runs with it and without take turns, so that a machine's moods meet both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from hooktrain.hookspecs import BOUNDARIES, SEGMENTS
from hooktrain.markers import hookimpl
from hooktrain.testing.checks.kit import Broken, Kit, Unjudged
from hooktrain.testing.checks.observing import changes_gradients, require_removable
from hooktrain.testing.checks.subject import Prepared, Spec, prepared
from hooktrain.trainer import Trainer

__all__ = ["check_cost"]

_ROUNDS, _STEPS = 8, 30
_IN_STEPS = (*(hook for hook in BOUNDARIES if "step" in hook or "microbatch" in hook), "on_log", "collect_metrics")
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
    times: dict[str, list[float]] = {}
    _steps(spec, variation, times)
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
    slowest = sorted(((statistics.median(found), name) for name, found in times.items()), reverse=True)[:3]
    return {
        "cost": statistics.median(apart),
        "noise": noise,
        "step": statistics.median(base),
        "calls": sum(len(found) for found in times.values()) / _STEPS,
        "hooks": ", ".join(f"{name} {seconds * 1e6:.1f} microseconds a call" for seconds, name in slowest) or "none",
    }


def _spread(values: list[float]) -> float:
    """A standard deviation that a few odd values do not move."""
    middle = statistics.median(values)
    return 1.4826 * statistics.median(abs(value - middle) for value in values)


def _steps(spec: Spec, variation: str, times: dict[str, list[float]] | None = None) -> float:
    """The median time of a step of one run; with ``times`` that of each call of the plugin's hooks is kept there."""
    watch = _Stopwatch()
    overrides = {"run_dir": "run", "train_iters": _STEPS, "epochs": None, "checkpoint": [], "eval_interval": 0}
    made = prepared(spec, variation, watch, overrides=overrides)
    if times is not None:
        _time(made, times)
    Trainer(made.recipe, made.host).run()
    return statistics.median(watch.seconds[2:])


def _time(made: Prepared, times: dict[str, list[float]]) -> None:
    """Time each call of the plugin's hooks in steps; of one that surrounds, without what it surrounds."""
    for hook in (*_IN_STEPS, *SEGMENTS):
        for found in made.host.implementations(hook):
            if found.plugin_name == made.name:
                timed = _surrounding if found.wrapper else _timed
                setattr(found, "function", timed(found.function, times.setdefault(hook, [])))  # noqa: B010
    made.host.hooks.refresh()


def _timed(function: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        began = time.perf_counter()
        answer = function(*arguments)
        times.append(time.perf_counter() - began)
        return answer

    return call


def _surrounding(function: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        began = time.perf_counter()
        inner = function(*arguments)
        next(inner)
        spent = time.perf_counter() - began
        result = yield
        began = time.perf_counter()
        try:
            inner.send(result)
        except StopIteration as end:
            result = end.value
        times.append(spent + time.perf_counter() - began)
        return result

    return call
