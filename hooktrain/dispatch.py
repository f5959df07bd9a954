"""The hooks as the loop calls them: pluggy's semantics, without its cost where nothing is to be decided.

A pluggy call costs over a microsecond even when nobody implements the hook, and the loop makes a dozen a step. So a
boundary without implementations becomes a function that does nothing, and a hook with one plain implementation a
direct call of it; everything else goes through pluggy. The view is rebuilt whenever a plugin comes or goes.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
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
            setattr(self, name, _bind(name, caller))

    def __getattr__(self, name: str) -> Callable[..., Any]:  # only reached for names that are not bound
        raise AttributeError(f"no hook is named '{name}'; hooks are declared in hooktrain.hookspecs or by a plugin")


def _bind(name: str, caller: pluggy.HookCaller) -> Callable[..., Any]:
    implementations = caller.get_hookimpls()
    first_result = caller.spec is not None and bool(caller.spec.opts.get("firstresult"))
    if not implementations:
        if name in SEGMENTS:
            return _answered(name, caller)
        return _silent if name in BOUNDARIES or first_result else caller
    if len(implementations) == 1 and not implementations[0].wrapper and (first_result or name in BOUNDARIES):
        return _direct(implementations[0])
    return _answered(name, caller) if name in SEGMENTS else caller


def _silent(**_: Any) -> None:
    """Nobody implements this hook."""


def _direct(implementation: HookImpl) -> Callable[..., Any]:
    function, names = implementation.function, implementation.argnames
    if not names:
        return lambda **_: function()
    if len(names) == 1:
        (only,) = names
        return lambda **given: function(given[only])
    pick = itemgetter(*names)
    return lambda **given: function(*pick(given))


def _answered(name: str, caller: pluggy.HookCaller) -> Callable[..., Any]:
    """A segment must end with an answer: None would let the loop go on as if the work had been done."""

    def call(**given: Any) -> Any:
        result = caller(**given)
        if result is None:
            plugins = ", ".join(f"'{found.plugin_name}'" for found in reversed(caller.get_hookimpls())) or "none"
            raise SegmentError(
                f"hook {name}: no plugin answered; every implementation declined, or a wrapper returned None instead of"
                f" the result of its yield (asked: {plugins})"
            )
        return result

    return call


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
