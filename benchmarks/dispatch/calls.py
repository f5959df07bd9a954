"""What a call of one hook costs, with the hooks bound as a run's trainer has them, and through pluggy alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from hooktrain import LossSum, hookimpl
from hooktrain.bench import Case, Metric, Variant
from hooktrain.plugin.manager import PluginHost
from hooktrain.training.load import make_host

__all__ = ["CALLS", "cases"]

CALLS = 1000
"""Calls in a row, so that calling the measured function costs next to nothing of what is measured."""
_COUNTS = (0, 1, 10, 100)


class _Hears:
    """A plugin that implements an event."""

    @hookimpl
    def on_microbatch_end(self, trainer: Any, batch: Any, loss: Any) -> None: ...


class _Wraps:
    """A plugin that wraps a loop hook."""

    @hookimpl(wrapper=True)
    def compute_loss(self, trainer: Any) -> Any:
        return (yield)


Call = Callable[[], Any]


def _event(hook: Callable[..., Any]) -> Call:
    return lambda: hook(trainer=None, batch=None, loss=None)


def _loop_hook(hook: Callable[..., Any]) -> Call:
    answer = LossSum(None, 1)  # type: ignore[arg-type]
    trainer = SimpleNamespace(
        loss=lambda model, batch, denominator: answer
    )  # all that the default loop hook asks of one
    return lambda: hook(trainer=trainer, model=None, batch=None, denominator=1)


def _host(plugin: type, count: int) -> PluginHost:
    """A host as a run has it, with the engine's own plugins and so many others."""
    host = make_host(discover=False)
    for _ in range(count):
        host.register(plugin())
    host.check()
    return host


def _heard(implementations: int) -> Call:
    return _event(_host(_Hears, implementations).hooks.on_microbatch_end)


def _heard_by_pluggy(implementations: int) -> Call:
    return _event(_host(_Hears, implementations).manager.hook.on_microbatch_end)


def _called_one_by_one(implementations: int) -> Call:
    """As little as it can take: a list of methods, and nothing that decides anything."""
    methods = [_Hears().on_microbatch_end for _ in range(implementations)]

    def call() -> None:
        for method in methods:
            method(None, None, None)

    return call


def _wrapped(implementations: int) -> Call:
    return _loop_hook(_host(_Wraps, implementations).hooks.compute_loss)


def _wrapped_by_pluggy(implementations: int) -> Call:
    return _loop_hook(_host(_Wraps, implementations).manager.hook.compute_loss)


def _many(call: Call, implementations: int) -> None:
    for _ in itertools.repeat(None, CALLS):
        call()


def _side(name: str, prepare: Callable[..., Call]) -> Variant:
    return Variant(name, _many, prepare=prepare)


def cases(quick: bool) -> Iterator[Case]:
    """One for each number of implementations, and of wrappers around the engine's own."""
    metric = Metric("seconds", "µs", scale=1e6 / CALLS, undisturbed=Metric("cpu_seconds", "µs", scale=1e6 / CALLS))
    for count in _COUNTS[::2] if quick else _COUNTS:
        yield Case(
            name=f"call-{count}",
            about="one call of on_microbatch_end, which nobody of the engine's own implements; the time of one",
            parameters={"implementations": count},
            sides=(
                _side("hooktrain", _heard),
                _side("pluggy", _heard_by_pluggy),
                _side("methods alone", _called_one_by_one),
            ),
            baseline="pluggy",
            metrics=(metric,),
            calls=None,
        )
    for count in _COUNTS[::2] if quick else _COUNTS:
        yield Case(
            name=f"wrapped-{count}",
            about="one call of compute_loss, the engine's own with so many wrappers around it; the time of one",
            parameters={"implementations": count},
            sides=(
                _side("hooktrain, wrappers", _wrapped),
                _side("pluggy, wrappers", _wrapped_by_pluggy),
            ),
            baseline="pluggy, wrappers",
            metrics=(metric,),
            calls=None,
        )
