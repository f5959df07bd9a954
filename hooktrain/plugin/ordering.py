"""Order of plugins: the one that a recipe states, and the choice among several that implement a loop hook."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pluggy import HookImpl

from hooktrain.compat import reorder_hook
from hooktrain.errors import Complaint, PluginError, did_you_mean

if TYPE_CHECKING:
    from hooktrain.plugin.manager import PluginHost

__all__ = ["complaint_of", "is_declined", "put_in_order", "settle_loop_hook"]


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
        passed = [rival for rival in rivals if rival.plugin_name != chosen]
        acting = next(found for found in answering if found.plugin_name == chosen)
        _tell_of_passed_over(host, hook, acting, [rival.plugin_name for rival in passed], "plugins.loop_hooks")
        for rival in passed:
            if not is_declined(rival):
                setattr(rival, "function", _declining(rival.function))  # noqa: B010 - as in guard_loop_hook
        host.hooks.refresh()
    elif len(rivals) > 1 and not set(names) <= set(host.config.order):
        listed = f"{', '.join(str(host.records[name]) for name in names[:-1])} and {host.records[names[-1]]}"
        raise PluginError(
            f"{listed} implement the loop hook {hook}, expected one plugin; write plugins: {{loop_hooks: {{{hook}:"
            f" {names[0]}}}}} to have one run it and pass the others over, or plugins: {{order:"
            f" [{', '.join(names)}]}} to have them tried in that order until one does not return NotImplemented"
        )
    else:
        for number, rival in enumerate(rivals[:-1], start=1):
            _tell_of_passed_over(host, hook, rival, names[number:], "plugins.order")
        host.hooks.refresh()


def _tell_of_passed_over(host: PluginHost, hook: str, acting: HookImpl, passed: Sequence[str], key: str) -> None:
    """Have the first call that a plugin answers say which plugins were not asked, and note it for the run's start."""
    if not passed or f"{hook} {acting.plugin_name}" in host.passed_over:
        return
    others = ", ".join(f"'{name}'" for name in passed)
    first = f"'{acting.plugin_name}' runs it"
    if key == "plugins.order" and not host.passed_over:
        first += ", unless it returns NotImplemented"
    host.passed_over[f"{hook} {acting.plugin_name}"] = f"{key}: hook {hook}: {first}, and passes over {others}"
    function, has_trainer = acting.function, "trainer" in acting.argnames
    place = acting.argnames.index("trainer") if has_trainer else 0
    told = False

    def telling(*arguments: Any) -> Any:
        nonlocal told
        result = function(*arguments)
        if not told and result is not None:
            told = True
            trainer = arguments[place] if has_trainer else None
            step = "" if trainer is None else f"step {trainer.global_step + 1}, "
            text = f"{step}hook {hook}: '{acting.plugin_name}' ran it, so {others} was not called ({key})"
            host.warn(text) if trainer is None else trainer.say(text)
        return result

    telling.__wrapped__ = function  # type: ignore[attr-defined]  # listings show the plugin's own file
    setattr(acting, "function", telling)  # noqa: B010 - as in guard_loop_hook


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
