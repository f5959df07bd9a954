"""Checks the cost of a plugin in a step: calls of hooks and new tensors, and with ``--hooktrain-time`` the time."""

from __future__ import annotations

import importlib
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import Tensor

from hooktrain.builtins.hook_timer import Cost, HookTimer
from hooktrain.compat import TorchDispatchMode, storage_id, tree_leaves
from hooktrain.hookspecs import EVENTS, LOOP_HOOKS
from hooktrain.markers import hookimpl
from hooktrain.testing.plugin_checks.check_observes import changes_gradients, require_removable
from hooktrain.testing.plugin_checks.kit import Broken, Kit, NotApplicable
from hooktrain.testing.plugin_checks.plugin_reference import Spec, prepared
from hooktrain.training.trainer import Trainer

__all__ = ["check_cost"]

_STEPS, _COUNTED_STEPS = 30, 4
_IN_STEPS = (
    *(hook for hook in EVENTS if "step" in hook or "microbatch" in hook),
    *("on_log", "collect_metrics"),
    *LOOP_HOOKS,
)
_LONGEST = 8.0
"""Seconds after which no further round starts."""


def check_cost(kit: Kit) -> None:
    """Check the calls of hooks and new tensors of a step, and with ``--hooktrain-time`` its time."""
    require_removable(kit)
    variation = "unused" if changes_gradients(kit) else "unselected"  # work for the training is no overhead
    acts = _check_counts(kit, variation)
    if kit.options.time and acts:
        _check_time(kit, variation)
    elif kit.options.time:
        kit.notes["cost"] += "; a difference in time would not be the plugin's"
    elif kit.options.calls is None and kit.options.allocations is None:
        raise NotApplicable(
            f"{kit.notes['cost']}; --hooktrain-time checks the budget, and conformance(calls=...,"
            " allocations=...) checks these"
        )


# ---------------------------------------------------------------------------------------------------------- counts


def _check_counts(kit: Kit, variation: str) -> bool:
    """Check the counts; return whether the plugin does anything in a step."""
    done = kit.start("counts", f"{__name__}:_counted", spec=kit.spec, variation=variation)
    found = kit.need(done, "runs with the plugin and without")
    calls, allocations = found["calls"], found["allocations"]
    kit.notes["cost"] = f"{sum(calls.values()):g} calls of hooks and {sum(allocations.values()):g} new tensors a step"
    for what, counts, limit, fix in (
        ("calls of hooks", calls, kit.options.calls, "implement fewer hooks, or hooks that are called less often"),
        (
            "new tensors, without those of a run without it,",
            allocations,
            kit.options.allocations,
            "write to tensors that on_train_start has allocated, with out= and with methods that end in _",
        ),
    ):
        if limit is not None and sum(counts.values()) > limit:
            places = ", ".join(f"{place} {count:g}" for place, count in counts.most_common(3))
            raise Broken(
                f"a step makes {sum(counts.values()):g} {what} and {limit:g} are allowed; most of them: {places}",
                "the work of a plugin in each step stays within the limits that its author has set",
                f"{fix}; or allow more with conformance(calls=..., allocations=...)",
            )
    return bool(calls or +allocations)


def _counted(spec: Spec, variation: str) -> dict[str, Counter[str]]:
    """Count the calls of the plugin's hooks and the new tensors of a step, by hook; in a process of its own."""
    torch.set_num_threads(1)
    plain, _, _ = _count(spec, "without")
    found, timer, name = _count(spec, variation)
    calls = {hook: cost.calls for (plugin, hook), cost in timer.costs.items() if plugin == name and hook in _IN_STEPS}
    made = {where[1]: count for where, count in found.items() if where[0] == name}
    made["outside of its hooks"] = sum(found.values()) - sum(made.values()) - sum(plain.values())
    return {
        "calls": Counter({hook: count / _COUNTED_STEPS for hook, count in calls.items() if count}),
        "allocations": Counter({where: count / _COUNTED_STEPS for where, count in made.items() if count}),
    }


def _count(spec: Spec, variation: str) -> tuple[Counter[tuple[str, str]], HookTimer, str]:
    """Run some steps; return their new tensors by plugin and hook, the timed hooks, and the plugin's name."""
    timer = HookTimer()
    tensors = _NewTensors(timer)
    made = prepared(spec, variation, tensors, overrides=_overrides(variation, _COUNTED_STEPS))
    made.host.measure(timer)
    Trainer(made.recipe, made.host).run()
    return tensors.made, timer, made.name


class _NewTensors:
    """Counts the tensors that torch allocates in steps, by plugin and hook."""

    def __init__(self, timer: HookTimer) -> None:
        self.made: Counter[tuple[str, str]] = Counter()
        self._mode = _Storages(self.made, timer)

    @hookimpl(trylast=True)
    def on_epoch_start(self) -> None:
        self._mode.__enter__()  # type: ignore[no-untyped-call]

    @hookimpl(wrapper=True, tryfirst=True)
    def run_evaluate(self) -> Generator[None, Any, Any]:
        self._mode.paused = True
        try:
            return (yield)
        finally:
            self._mode.paused = False

    @hookimpl(tryfirst=True)
    def on_epoch_end(self) -> None:
        self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]


class _Storages(TorchDispatchMode):
    def __init__(self, made: Counter[tuple[str, str]], timer: HookTimer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made, self.timer, self.paused = made, timer, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        cost = self.timer.innermost
        count = len(_storages(result) - _storages((args, kwargs)))
        if count and not self.paused:
            self.made[(cost.plugin, cost.hook) if cost else ("", "")] += count
        return result


def _storages(value: Any) -> set[int]:
    """Return the memory of tensors, as numbers."""
    return {storage_id(leaf) for leaf in tree_leaves(value) if isinstance(leaf, Tensor)}


def _overrides(variation: str, steps: int) -> dict[str, Any]:
    folder = tempfile.mkdtemp(prefix=f"{variation}-", dir=".")  # of its own: a run finds nothing of another one's
    return {"run_dir": folder, "train_iters": steps, "epochs": None, "checkpoint": [], "eval_interval": 0}


# ------------------------------------------------------------------------------------------------------------ time


def _check_time(kit: Kit, variation: str) -> None:
    """Compare the time of steps with the budget; runs with the plugin and without alternate."""
    budget, share = _budget(kit.options.budget)
    arguments = {"spec": kit.spec, "variation": variation, "clock": kit.options.clock}
    counts = kit.notes["cost"]
    for attempt in range(2):
        done = kit.start("cost", f"{__name__}:_measured", rounds=kit.options.rounds * (1 + attempt), **arguments)
        found = kit.need(done, "runs with the plugin and without")
        allowed = budget * found["step"] if share else budget * 1e-6 * max(found["calls"], 1.0)
        cost, noise = found["cost"], found["noise"]
        numbers = (
            f"{cost * 1e6:.1f} microseconds a step (± {noise * 1e6:.1f}) with {found['calls']:.1f} calls of hooks, and"
            f" a step takes {found['step'] * 1e6:.0f} without the plugin; {allowed * 1e6:.1f} are allowed"
        )
        kit.notes["cost"] = f"{counts}; {numbers}"
        if noise <= allowed and cost + noise <= allowed:
            return
        if cost - 2 * noise > allowed:
            raise Broken(
                f"costs {numbers}; the slowest hooks: {found['hooks']}",
                "the engine calls a dozen hooks in a step, and a step of a small model takes less than a millisecond",
                "move work out of the step: to on_train_start, to on_log, or to every n-th step; or allow more with"
                " conformance(budget=...), in microseconds for each call of a hook or as a share of the step ('5%')",
            )
        if noise > 4 * allowed:
            break
    raise NotApplicable(f"this machine is too noisy to measure the cost: {numbers}")


def _budget(value: float | str) -> tuple[float, bool]:
    """Return the budget, and whether it is a share of the step."""
    if isinstance(value, str):
        return float(value.removesuffix("%")) / 100, True
    return float(value), False


class _Stopwatch:
    """Times each step, with the hooks that are called in it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.seconds: list[float] = []
        self.clock = clock

    @hookimpl(tryfirst=True)
    def on_train_start(self, trainer: Trainer) -> None:
        step, seconds, clock = trainer.step, self.seconds, self.clock

        def timed(batches: Any) -> Any:
            began = clock()
            output = step(batches)
            seconds.append(clock() - began)
            return output

        trainer.step = timed  # type: ignore[method-assign]


def _measured(spec: Spec, rounds: int, variation: str, clock: str) -> dict[str, Any]:
    """Measure the cost of a step and its noise; in a process of its own."""
    torch.set_num_threads(1)
    module, _, function = clock.partition(":")
    read: Callable[[], float] = getattr(importlib.import_module(module), function)
    _steps(spec, "without", read)
    costs: list[Cost] = []
    _steps(spec, variation, read, costs)
    differences: list[float] = []
    repeats: list[float] = []
    base: list[float] = []
    until = time.monotonic() + _LONGEST
    while len(differences) < rounds and (len(differences) < 3 or time.monotonic() < until):
        first, second, third = (_steps(spec, name, read) for name in ("without", variation, "without"))
        differences.append(second - (first + third) / 2)
        repeats.append((third - first) / 2)
        base.append(min(first, third))
    # the deviation of equal runs, and of the differences; a median is a quarter less precise than a mean
    noise = 1.25 * max(_deviation(differences), _deviation(repeats)) / len(differences) ** 0.5
    each = ((cost.nanoseconds / cost.calls / 1e3, cost.hook) for cost in costs if cost.calls)
    slowest = sorted(each, reverse=True)[:3]
    return {
        "cost": statistics.median(differences),
        "noise": noise,
        "step": statistics.median(base),
        "calls": sum(cost.calls for cost in costs) / _STEPS,
        "hooks": ", ".join(f"{hook} {found:.1f} microseconds a call" for found, hook in slowest) or "none",
    }


def _deviation(values: list[float]) -> float:
    """Return the standard deviation, estimated from the median so that outliers do not change it."""
    middle = statistics.median(values)
    return 1.4826 * statistics.median(abs(value - middle) for value in values)


def _steps(spec: Spec, variation: str, clock: Callable[[], float], costs: list[Cost] | None = None) -> float:
    """Return the median time of a step of one run; append the costs of the plugin's hooks to ``costs``."""
    watch = _Stopwatch(clock)
    made = prepared(spec, variation, watch, overrides=_overrides(variation, _STEPS))
    timer = HookTimer()
    if costs is not None:
        made.host.measure(timer)
    Trainer(made.recipe, made.host).run()
    if costs is not None:
        costs += [cost for (name, hook), cost in timer.costs.items() if name == made.name and hook in _IN_STEPS]
    return statistics.median(watch.seconds[2:])
