"""The hooks as the loop calls them: pluggy's semantics, without its cost where nothing is to be decided.

A pluggy call costs over a microsecond even when nobody implements the hook, and the loop makes a dozen a step. So each
hook becomes a function that calls its implementations in pluggy's order and does nothing else; only where there are
wrappers does the call go through pluggy. The view is rebuilt whenever a plugin comes or goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pluggy
from pluggy import HookImpl

from hooktrain.errors import SegmentError
from hooktrain.hookspecs import BOUNDARIES, SEGMENTS

__all__ = ["Hooks", "guard_segment"]


class Hooks:
    """Every hook as a callable attribute that takes keyword arguments; made by ``PluginHost``."""

    def __init__(self, manager: pluggy.PluginManager) -> None:
        self._manager = manager
        self.refresh()

    def refresh(self) -> None:
        """Bind the hooks anew, after plugins came or went."""
        for name, caller in vars(self._manager.hook).items():
            bound: Any = _bind(name, caller)
            if bound is not caller:
                bound.get_hookimpls = caller.get_hookimpls  # as pluggy's own callers have it
            setattr(self, name, bound)

    def __getattr__(self, name: str) -> Callable[..., Any]:  # only reached for names that are not bound
        raise AttributeError(f"no hook is named '{name}'; hooks are declared in hooktrain.hookspecs or by a plugin")


def _bind(name: str, caller: pluggy.HookCaller) -> Callable[..., Any]:
    implementations = list(reversed(caller.get_hookimpls()))
    if caller.spec is None or caller.is_historic() or any(found.wrapper for found in implementations):
        return _answered(name, caller) if name in SEGMENTS else caller
    return _compiled(name, caller, implementations)


def _compiled(name: str, caller: pluggy.HookCaller, implementations: Sequence[HookImpl]) -> Callable[..., Any]:
    """A function with the hook's own parameters that calls each implementation with those it names.

    Written out as source, since a call through ``**given`` costs three times as much, and the loop makes dozens a step.
    """
    assert caller.spec is not None, "only a declared hook is compiled"
    parameters, first_result = caller.spec.argnames, caller.spec.opts.get("firstresult")
    collects = not first_result and name not in BOUNDARIES
    lines = [f"def {name}({'*, ' if parameters else ''}{', '.join(parameters)}):"]
    scope: dict[str, Any] = {"unanswered": lambda: _unanswered(name, caller)}
    if collects:
        lines.append("    results = []")
    for number, found in enumerate(implementations):
        scope[f"f{number}"] = found.function
        call = f"f{number}({', '.join(found.argnames)})"
        if first_result:
            lines += [f"    result = {call}", "    if result is not None: return result"]
        elif collects:
            lines += [f"    result = {call}", "    if result is not None: results.append(result)"]
        else:
            lines.append(f"    {call}")
    lines.append("    raise unanswered()" if name in SEGMENTS else f"    return {'results' if collects else 'None'}")
    exec(compile("\n".join(lines), f"<hook {name}>", "exec"), scope)
    compiled: Callable[..., Any] = scope[name]
    return compiled


def _answered(name: str, caller: pluggy.HookCaller) -> Callable[..., Any]:
    """A segment must end with an answer: None would let the loop go on as if the work had been done."""

    def call(**given: Any) -> Any:
        result = caller(**given)
        if result is None:
            raise _unanswered(name, caller)
        return result

    return call


def _unanswered(name: str, caller: pluggy.HookCaller) -> SegmentError:
    plugins = ", ".join(f"'{found.plugin_name}'" for found in reversed(caller.get_hookimpls())) or "none"
    return SegmentError(
        f"hook {name}: no plugin answered; every implementation declined, or a wrapper returned None instead of"
        f" the result of its yield (asked: {plugins})"
    )


def guard_segment(name: str, implementation: HookImpl) -> None:
    """Make a segment's implementation fail when it returns None, and decline when it returns NotImplemented.

    To pluggy None means *ask the next one*, which would do the work a second time after an implementation that merely
    forgot its ``return``.
    """
    function, plugin = implementation.function, implementation.plugin_name

    def guarded(*arguments: Any) -> Any:
        result = function(*arguments)
        if result is None:
            raise SegmentError(
                f"plugin '{plugin}', hook {name}: returned None, expected what the hook's documentation says; return"
                " the result, or NotImplemented to leave the work to the next plugin"
            )
        return None if result is NotImplemented else result

    guarded.__wrapped__ = function  # type: ignore[attr-defined]
    setattr(implementation, "function", guarded)  # noqa: B010 - final for type checkers, and pluggy has no other way
