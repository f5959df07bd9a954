"""Plugins whose attributes may change while they render, which processes of their own would lose."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import attrs

from hooktrain_sft.data.formats import Format

__all__ = ["stateful_renderers"]


def stateful_renderers(hooks: Any, chosen: Format | None) -> list[str]:
    """Return the classes of other plugins that render or convert the examples of a source and have attributes.

    Args:
        hooks: of the run.
        chosen: the format of the examples; a plugin that registers formats counts where this one calls it.
    """
    converting = [one.plugin for one in hooks.register_formats.get_hookimpls()]
    called = [plugin for plugin in converting if chosen is not None and _holds(chosen.convert, plugin)]
    plugins = [one.plugin for one in hooks.render_example.get_hookimpls()] + called
    objects = [plugin for plugin in plugins if not (inspect.ismodule(plugin) or inspect.isclass(plugin))]
    others = {type(plugin): plugin for plugin in objects}
    return [
        kind.__name__
        for kind, plugin in others.items()
        if kind.__module__.partition(".")[0] != __name__.partition(".")[0] and _has_attributes(plugin)
    ]


def _holds(value: Any, plugin: Any, depth: int = 8) -> bool:
    """Whether a function is a method of a plugin, or refers to it from its closure, arguments or attributes."""
    if value is plugin or not depth:
        return value is plugin
    if isinstance(value, functools.partial):
        inner = [value.func, *value.args, *value.keywords.values()]
    elif inspect.ismethod(value):
        inner = [value.__self__, value.__func__]
    elif inspect.isfunction(value):
        inner = [cell.cell_contents for cell in value.__closure__ or ()]
    elif attrs.has(type(value)):
        inner = list(attrs.asdict(value, recurse=False).values())
    elif inspect.ismodule(value) or inspect.isclass(value) or isinstance(value, (str, bytes)):
        inner = []
    else:
        inner = list(vars(value).values()) if _has_attributes(value, without=False) else []
    return any(_holds(each, plugin, depth - 1) for each in inner)


def _has_attributes(value: Any, without: bool = True) -> bool:
    """Whether an object has attributes; ``without`` is the answer for one that has no ``__dict__``."""
    try:
        return bool(vars(value))
    except TypeError:  # slots
        return without
