"""Which plugin and hook an exception, a stack or a module belongs to."""

from __future__ import annotations

import inspect
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

from hooktrain.compat import code_of, module_name_of, module_of
from hooktrain.errors import failure_of

if TYPE_CHECKING:
    from hooktrain.plugin.manager import PluginHost

__all__ = ["owner_of", "raised_in", "running_in"]


def raised_in(host: PluginHost, exception: BaseException) -> tuple[str, str] | None:
    """Return the plugin and the hook in which an exception was raised: the innermost one on its traceback."""
    told = failure_of(exception).raised_in
    if told is not None:
        return told
    codes, blamed, step = _codes(host), None, exception.__traceback__
    while step is not None:
        blamed = codes.get(step.tb_frame.f_code, blamed)
        step = step.tb_next
    return blamed


def running_in(host: PluginHost, frame: FrameType | None) -> tuple[str, str] | None:
    """Return the plugin and the hook that are running: the innermost ones on a thread's stack.

    Args:
        host: the plugins.
        frame: the thread's innermost one.
    """
    codes = _codes(host)
    while frame is not None and frame.f_code not in codes:
        frame = frame.f_back
    return None if frame is None else codes[frame.f_code]


def owner_of(host: PluginHost, module: str) -> str:
    """Return the plugin that a module belongs to, by its package; nothing where that is none, or the engine's."""
    package = module.partition(".")[0]
    for record in host.records.values() if package not in ("", "hooktrain") else ():
        plugin: Any = host.manager.get_plugin(record.name)
        home = module_name_of(plugin) if inspect.ismodule(plugin) else module_of(type(plugin))
        if plugin is not None and home.partition(".")[0] == package:
            return record.name
    return ""


def _codes(host: PluginHost) -> dict[CodeType | None, tuple[str, str]]:
    """Return the plugin and the hook of each implementation by its code."""
    return {
        code_of(found.function): (found.plugin_name, name)
        for name, caller in vars(host.manager.hook).items()
        for found in caller.get_hookimpls()
    }
