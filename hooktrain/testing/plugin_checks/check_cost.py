"""What a plugin costs a step: calls of hooks and new tensors, which are counted, and time where it is judged."""

from __future__ import annotations

import importlib
import statistics
import time
from collections import Counter
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hooktrain.builtins.hook_timer import Cost, HookTimer
from hooktrain.hookspecs import EVENTS, LOOP_HOOKS
from hooktrain.markers import hookimpl
from hooktrain.testing.plugin_checks.check_observes import changes_gradients, require_removable
from hooktrain.testing.plugin_checks.kit import Broken, Kit, Unjudged
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
"""Seconds after which no further round is begun."""


def check_cost(kit: Kit) -> None:
    """A step makes at most so many calls of hooks and new tensors, and with ``--hooktrain-time`` keeps its budget."""
    require_removable(kit)
    variation = "idle" if changes_gradients(kit) else "beside"  # what it does to the training is no overhead
    _judge_counts(kit, variation)
    if kit.options.time:
        _judge_time(kit, variation)
    elif kit.options.calls is None and kit.options.allocations is None:
        raise Unjudged(
            f"{kit.notes['cost']}; the budget is judged with --hooktrain-time, and these with conformance(calls=...,"
            " allocations=...)"
        )


# ---------------------------------------------------------------------------------------------------------- counts


def _judge_counts(kit: Kit, variation: str) -> None:
    done = kit.start("counts", f"{__name__}:_counted", spec=kit.spec, variation=variation)
    found = kit.need(done, "runs with the plugin and without")
    calls, allocations = found["calls"], found["allocations"]
    kit.notes["cost"] = f"{sum(calls.values()):g} calls of hooks and {sum(allocations.values()):g} new tensors a step"
    for what, counts, limit, mend in (
        ("calls of hooks", calls, kit.options.calls, "implement fewer hooks, and those that are called less often"),
        (
            "new tensors, those of a run without it not counted,",
            allocations,
            kit.options.allocations,
            "write in place, with out= and with methods that end in _, into tensors that on_train_start has made",
        ),
    ):
        if limit is not None and sum(counts.values()) > limit:
            places = ", ".join(f"{place} {count:g}" for place, count in counts.most_common(3))
            raise Broken(
                f"a step makes {sum(counts.values()):g} {what} and {limit:g} are allowed; most are of: {places}",
                "what a plugin does in every step is a number that its author has chosen, and that no change exceeds",
                f"{mend}; or allow more with conformance(calls=..., allocations=...)",
            )


def _counted(spec: Spec, variation: str) -> dict[str, Counter[str]]:
    """Calls of the plugin's hooks, by hook, and new tensors, by the hook that makes them; both a step.

    In a process of its own.
    """
    torch.set_num_threads(1)
    plain, _, _ = _count(spec, "without")
    found, ledger, name = _count(spec, variation)
    calls = {hook: cost.calls for (plugin, hook), cost in ledger.costs.items() if plugin == name and hook in _IN_STEPS}
    made = {where[1]: count for where, count in found.items() if where[0] == name}
    made["outside of its hooks"] = sum(found.values()) - sum(made.values()) - sum(plain.values())
    return {
        "calls": Counter({hook: count / _COUNTED_STEPS for hook, count in calls.items() if count}),
        "allocations": Counter({where: count / _COUNTED_STEPS for where, count in made.items() if count}),
    }


def _count(spec: Spec, variation: str) -> tuple[Counter[tuple[str, str]], HookTimer, str]:
    """The new tensors of some steps by plugin and hook, the calls of hooks, and the plugin's name."""
    ledger = HookTimer()
    tensors = _NewTensors(ledger)
    made = prepared(spec, variation, tensors, overrides=_overrides(_COUNTED_STEPS))
    made.host.measure(ledger)
    Trainer(made.recipe, made.host).run()
    return tensors.made, ledger, made.name


class _NewTensors:
    """Counts the tensors with memory of their own that torch makes in steps, by plugin and hook."""

    def __init__(self, ledger: HookTimer) -> None:
        self.made: Counter[tuple[str, str]] = Counter()
        self._mode = _Storages(self.made, ledger)

    @hookimpl(trylast=True)
    def on_epoch_start(self) -> None:
        self._mode.__enter__()  # type: ignore[no-untyped-call]

    @hookimpl(wrapper=True, tryfirst=True)
    def run_evaluate(self) -> Generator[None, Any, Any]:
        self._mode.pauses = True
        try:
            return (yield)
        finally:
            self._mode.pauses = False

    @hookimpl(tryfirst=True)
    def on_epoch_end(self) -> None:
        self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]


class _Storages(TorchDispatchMode):
    def __init__(self, made: Counter[tuple[str, str]], ledger: HookTimer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made, self.ledger, self.pauses = made, ledger, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        cost = self.ledger.innermost
        count = len(_storages(result) - _storages((args, kwargs)))
        if count and not self.pauses:
            self.made[(cost.plugin, cost.hook) if cost else ("", "")] += count
        return result


def _storages(value: Any) -> set[int]:
    """The memory that tensors lie in."""
    return {leaf.untyped_storage()._cdata for leaf in tree_leaves(value) if isinstance(leaf, Tensor)}


def _overrides(steps: int) -> dict[str, Any]:
    return {"run_dir": "run", "train_iters": steps, "epochs": None, "checkpoint": [], "eval_interval": 0}


# ------------------------------------------------------------------------------------------------------------ time


def _judge_time(kit: Kit, variation: str) -> None:
    """Compare the time of steps with the budget; runs with the plugin and without take turns."""
    budget, share = _budget(kit.options.budget)
    given = {"spec": kit.spec, "variation": variation, "clock": kit.options.clock}
    counts = kit.notes["cost"]
    for attempt in range(2):
        done = kit.start("cost", f"{__name__}:_measured", rounds=kit.options.rounds * (1 + attempt), **given)
        found = kit.need(done, "runs with the plugin and without")
        allowed = budget * found["step"] if share else budget * 1e-6 * max(found["calls"], 1.0)
        cost, noise = found["cost"], found["noise"]
        numbers = (
            f"{cost * 1e6:.1f} microseconds a step (give or take {noise * 1e6:.1f}) with {found['calls']:.1f} calls of"
            f" hooks in it, of {found['step'] * 1e6:.0f} without the plugin; {allowed * 1e6:.1f} are allowed"
        )
        kit.notes["cost"] = f"{counts}; {numbers}"
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
    """Times each step, everything that is emitted in it included."""

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
    """Cost of a step, and how sure that is; in a process of its own."""
    torch.set_num_threads(1)
    module, _, function = clock.partition(":")
    read: Callable[[], float] = getattr(importlib.import_module(module), function)
    _steps(spec, "without", read)
    costs: list[Cost] = []
    _steps(spec, variation, read, costs)
    apart: list[float] = []
    again: list[float] = []
    base: list[float] = []
    until = time.monotonic() + _LONGEST
    while len(apart) < rounds and (len(apart) < 3 or time.monotonic() < until):
        first, second, third = (_steps(spec, name, read) for name in ("without", variation, "without"))
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


def _steps(spec: Spec, variation: str, clock: Callable[[], float], costs: list[Cost] | None = None) -> float:
    """The median time of a step of one run; with ``costs`` what the plugin's hooks in steps took is added there."""
    watch = _Stopwatch(clock)
    made = prepared(spec, variation, watch, overrides=_overrides(_STEPS))
    ledger = HookTimer()
    if costs is not None:
        made.host.measure(ledger)
    Trainer(made.recipe, made.host).run()
    if costs is not None:
        costs += [cost for (name, hook), cost in ledger.costs.items() if name == made.name and hook in _IN_STEPS]
    return statistics.median(watch.seconds[2:])
