"""Which of several plugins goes first: the order that a recipe states, and segments that two claim."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pluggy import HookImpl

from hooktrain.errors import PluginError, did_you_mean
from hooktrain.hookspecs import SEGMENTS

if TYPE_CHECKING:
    from hooktrain.plugins import PluginHost

__all__ = ["conflicts", "put_in_order", "settle_segment"]


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
            why = "is the engine's default loop, which is asked last" if name == "loop" else "is named twice"
            raise PluginError(f"plugins.order: '{name}' {why}; leave it out")
    if not order:
        return
    place = {name: -number for number, name in enumerate(order)}
    for caller in vars(host.manager.hook).values():
        # pluggy calls from the end of the list, wrappers being after all others, and orders by registration alone
        caller._hookimpls.sort(key=lambda found: (_is_wrapper(found), place.get(found.plugin_name, -len(order))))
    last = [name for name in reversed(order) if name in host.records]
    host.records.update({name: host.records.pop(name) for name in last})
    host.hooks.refresh()


def _is_wrapper(found: HookImpl) -> bool:
    return bool(found.wrapper or found.hookwrapper)


def settle_segment(host: PluginHost, segment: str) -> None:
    """Leave one claimant of a segment, as the recipe says, or ask several in the order that it states.

    Raises:
        PluginError: naming all claimants and the line to write; or the one chosen does not claim it.
    """
    claims = [found for found in host.implementations(segment) if not found.wrapper and not host.is_own(found)]
    names = [claim.plugin_name for claim in claims]
    chosen = host.config.segments.get(segment)
    if chosen is not None:
        if chosen not in names:
            raise PluginError(
                f"plugins.segments.{segment}: '{chosen}' does not implement it; those that do:"
                f" {', '.join(names) or 'none'}"
            )
        for claim in claims:
            if claim.plugin_name != chosen:
                setattr(claim, "function", _decline)  # noqa: B010 - as in guard_segment
        host.hooks.refresh()
    elif len(claims) > 1 and not set(names) <= set(host.config.order):
        listed = " and ".join(str(host.records[name]) for name in names)
        raise PluginError(
            f"{listed} all claim the segment {segment}; say which one runs it:"
            f" plugins: {{segments: {{{segment}: {names[0]}}}}}"
        )


def conflicts(host: PluginHost) -> list[str]:
    """Everything about which the plugins disagree; :meth:`PluginHost.check` raises the first."""
    found = []
    for check in (host.check, *(lambda name=name: settle_segment(host, name) for name in SEGMENTS)):
        try:
            check()
        except PluginError as problem:
            found.append(str(problem))
    return list(dict.fromkeys(found))


def _decline(*_: Any) -> None:
    """Put in the place of a segment's implementation when the recipe chose another plugin's."""
