"""Cost of a call of one hook, with the hooks bound as in a run, and through pluggy alone."""

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
"""Calls in a loop, so that the cost of calling the measured function is negligible."""
_COUNTS = (0, 1, 10, 100)


class _Observes:
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
    result = LossSum(None, 1)  # type: ignore[arg-type]
    trainer = SimpleNamespace(loss=lambda model, batch, denominator: result)  # all that the default loop hook needs
    return lambda: hook(trainer=trainer, model=None, batch=None, denominator=1)


def _host(plugin: type, count: int) -> PluginHost:
    """Return a plugin host as in a run, with those of the engine's own plugins that every run uses and others."""
    host = make_host(discover=False)
    for record in list(host.records.values()):
        if record.info.active_when is not None:
            host.leave_out(record, "no recipe asks for it")
    for _ in range(count):
        host.register(plugin())
    host.check()
    return host


def _event_by_hooktrain(implementations: int) -> Call:
    return _event(_host(_Observes, implementations).hooks.on_microbatch_end)


def _event_by_pluggy(implementations: int) -> Call:
    return _event(_host(_Observes, implementations).manager.hook.on_microbatch_end)


def _called_one_by_one(implementations: int) -> Call:
    """Return a call of a list of methods, the least that a call can cost."""
    methods = [_Observes().on_microbatch_end for _ in range(implementations)]

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


def _variant(name: str, prepare: Callable[..., Call]) -> Variant:
    return Variant(name, _many, prepare=prepare)


def cases(quick: bool) -> Iterator[Case]:
    """Yield a case for each number of implementations, and of wrappers around the engine's own."""
    metric = Metric("seconds", "µs", scale=1e6 / CALLS, undisturbed=Metric("cpu_seconds", "µs", scale=1e6 / CALLS))
    for count in _COUNTS[::2] if quick else _COUNTS:
        yield Case(
            name=f"call-{count}",
            about="one call of on_microbatch_end, which no plugin of the engine implements",
            parameters={"implementations": count},
            variants=(
                _variant("hooktrain", _event_by_hooktrain),
                _variant("pluggy", _event_by_pluggy),
                _variant("methods alone", _called_one_by_one),
            ),
            baseline="pluggy",
            metrics=(metric,),
            calls=None,
        )
    for count in _COUNTS[::2] if quick else _COUNTS:
        yield Case(
            name=f"wrapped-{count}",
            about="one call of compute_loss, the engine's own with so many wrappers",
            parameters={"implementations": count},
            variants=(
                _variant("hooktrain, wrappers", _wrapped),
                _variant("pluggy, wrappers", _wrapped_by_pluggy),
            ),
            baseline="pluggy, wrappers",
            metrics=(metric,),
            calls=None,
        )
