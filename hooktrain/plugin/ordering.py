"""Order of plugins: the one that a recipe states, and the choice among several that implement a loop hook."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pluggy import HookImpl

from hooktrain.compat import reorder_hook
from hooktrain.errors import Complaint, PluginError, did_you_mean
from hooktrain.hookspecs import LOOP_HOOKS

if TYPE_CHECKING:
    from hooktrain.plugin.manager import PluginHost

__all__ = ["complaint_of", "conflicts", "is_declined", "put_in_order", "settle_loop_hook"]


def put_in_order(host: PluginHost) -> None:
    """Have the plugins of ``plugins.order`` called before all others, in that order, at every hook.

    Raises:
        PluginError: one of them is not there, is named twice, or is the engine's loop, which answers last.
    """
    order = host.config.order
    for number, name in enumerate(order):
        if name not in host.records:
            raise PluginError(
                f"plugins.order: '{name}' is not there{did_you_mean(name, host.records)}; there are"
                f" {', '.join(host.records)}"
            )
        if name == "loop" or name in order[:number]:
            why = "is the engine's default loop, which is tried last" if name == "loop" else "is named twice"
            raise PluginError(f"plugins.order: '{name}' {why}; remove it")
    if not order:
        return
    place = {name: -number for number, name in enumerate(order)}
    for caller in vars(host.manager.hook).values():
        # wrappers are after all others, and pluggy itself orders by registration alone
        reorder_hook(caller, lambda found: (_is_wrapper(found), place.get(found.plugin_name, -len(order))))
    last = [name for name in reversed(order) if name in host.records]
    host.records.update({name: host.records.pop(name) for name in last})
    host.hooks.refresh()


def _is_wrapper(found: HookImpl) -> bool:
    return bool(found.wrapper or found.hookwrapper)


def settle_loop_hook(host: PluginHost, hook: str) -> None:
    """Choose the plugin that runs a loop hook, as the recipe says, or try several in the order that it states.

    Raises:
        PluginError: naming all that implement it and the line to write; or the one chosen does not implement it, and is
            not the engine's default loop, which runs it when no other plugin does.
    """
    answering = [found for found in host.implementations(hook) if not found.wrapper]
    rivals = [found for found in answering if not host.is_own(found)]
    names = [rival.plugin_name for rival in rivals]
    chosen = host.config.loop_hooks.get(hook)
    if chosen is not None:
        candidates = [found.plugin_name for found in answering]
        if chosen not in candidates:
            record = host.records.get(chosen)
            if record is None:
                why = f"is not there{did_you_mean(chosen, candidates)}"
            elif record.state == "active":
                why = "does not implement it"
            else:
                why = f"is {record.state} ({record.reason})"
            raise PluginError(
                f"plugins.loop_hooks.{hook}: '{chosen}' {why}; those that implement it: {', '.join(candidates)}"
            )
        for rival in rivals:
            if rival.plugin_name != chosen and not is_declined(rival):
                setattr(rival, "function", _declining(rival.function))  # noqa: B010 - as in guard_loop_hook
        host.hooks.refresh()
    elif len(rivals) > 1 and not set(names) <= set(host.config.order):
        listed = " and ".join(str(host.records[name]) for name in names)
        raise PluginError(
            f"{listed} all implement the loop hook {hook}; say which one runs it:"
            f" plugins: {{loop_hooks: {{{hook}: {names[0]}}}}}"
        )


def conflicts(host: PluginHost) -> list[PluginError]:
    """Everything that is wrong with the plugins, collected problems first; :meth:`PluginHost.check` raises one."""
    found = []
    for check in (host.check, *(lambda name=name: settle_loop_hook(host, name) for name in LOOP_HOOKS)):
        try:
            check()
        except PluginError as problem:
            found.append(problem)
    return list({str(problem): problem for problem in (*(host.problems or ()), *found)}.values())


def complaint_of(problem: PluginError) -> Complaint:
    """Return an error about plugins with the path in the recipe that its text begins with, if any."""
    path, colon, rest = str(problem).partition(": ")
    is_path = colon and re.fullmatch(r"plugins(\.\w+)*", path)
    return Complaint(path, rest) if is_path else Complaint("plugins", str(problem))


def is_declined(implementation: HookImpl) -> bool:
    """Whether the recipe chose another plugin than this one for a loop hook."""
    return "hooktrain_declined" in vars(implementation.function)


def _declining(function: Callable[..., Any]) -> Callable[..., None]:
    """Return a function that leaves a loop hook to the plugin that the recipe chose."""

    def declined(*_: Any) -> None:
        """Leaves the loop hook to the one that was chosen."""

    declined.__wrapped__ = function  # type: ignore[attr-defined]  # listings show the plugin's own file
    declined.hooktrain_declined = True  # type: ignore[attr-defined]
    return declined
