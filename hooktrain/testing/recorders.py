"""Plugins that record the hooks that a run calls."""

from __future__ import annotations

import inspect
from typing import Any

from hooktrain import hookspecs
from hooktrain.hookspecs import EVENTS, FACTORIES, LOOP_HOOKS
from hooktrain.markers import hookimpl

__all__ = ["Recorder", "LoopHookRecorder"]


class Recorder:
    """A plugin that records every event, as ``(hook, arguments)``, and the metrics that were logged."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    @property
    def hooks(self) -> list[str]:
        """The hooks in the order of their calls; a loop hook begins with ``name`` and ends with ``/name``."""
        return [name for name, _ in self.calls]

    @property
    def metrics(self) -> list[dict[str, float]]:
        """Every log line."""
        return [dict(arguments["metrics"]) for name, arguments in self.calls if name == "on_log"]


class LoopHookRecorder(Recorder):
    """A recorder that wraps every loop hook and factory as well."""


def _record(name: str, wraps: bool) -> Any:
    """Return an implementation of a hook that takes all of its parameters."""
    parameters = ", ".join(inspect.signature(getattr(hookspecs, name)).parameters)
    body = f"self.calls.append(('{name}', dict(locals())))"
    if wraps:
        body += f"; result = yield; self.calls.append(('/{name}', {{'result': result}})); return result"
    scope: dict[str, Any] = {}
    exec(f"def {name}(self, {parameters}): {body}", scope)  # pluggy reads each hook's parameters off its function
    return hookimpl(wrapper=wraps)(scope[name])


for _name in EVENTS:
    setattr(Recorder, _name, _record(_name, wraps=False))
for _name in (*FACTORIES, *LOOP_HOOKS):
    setattr(LoopHookRecorder, _name, _record(_name, wraps=True))
