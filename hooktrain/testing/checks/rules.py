"""Hooks that exist, with the parameters that they have."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import FunctionType
from typing import Any

from hooktrain.errors import HooktrainError
from hooktrain.testing.checks.kit import Broken, Kit

__all__ = ["check_hooks"]


def check_hooks(kit: Kit) -> None:
    """Every implementation is of a hook that there is, takes its parameters, and is called."""
    done = kit.start("hooks", f"{__name__}:_problems", spec=kit.spec)
    found = kit.need(done, "loading the plugin")
    if found:
        raise Broken(
            "\n".join(found),
            "an implementation is marked with @hookimpl, named after a hook, and takes a subset of its parameters,"
            " without defaults",
            "`hooktrain hooks` lists the hooks, `hooktrain hooks NAME` the parameters of one",
        )


def _problems(spec: Any) -> list[str]:
    """What is wrong with the functions of the plugin; in a process of its own."""
    from hooktrain.testing.checks.subject import prepared

    plugin = spec.reference.load()
    found = list(_unmarked(plugin))
    try:
        made = prepared(spec, "with")
    except HooktrainError as problem:
        return [*found, str(problem)]
    record = made.host.records.get(made.name)
    if record is None or record.state != "active":
        return [*found, f"the plugin is {record.state if record else 'not there'}: {record.reason if record else ''}"]
    return found + list(_never_run(made.host, made.name))


def _functions(plugin: Any) -> Iterator[tuple[str, Any]]:
    """Functions of a plugin's module or class that are its own and not imported."""
    module = plugin if inspect.ismodule(plugin) else None
    for name in dir(plugin):
        function = inspect.getattr_static(plugin, name, None)
        function = getattr(function, "__func__", function)
        if isinstance(function, FunctionType) and (module is None or function.__module__ == module.__name__):
            yield name, function


def _unmarked(plugin: Any) -> Iterator[str]:
    """Functions that are named like a hook and will never be called."""
    from hooktrain import hookspecs

    for name, function in _functions(plugin):
        spec = getattr(hookspecs, name, None)
        if hasattr(spec, "hooktrain_spec") and not hasattr(function, "hooktrain_impl"):
            yield f"{name}: is named like a hook, but not marked with @hookimpl, so that it is never called"


def _never_run(host: Any, name: str) -> Iterator[str]:
    """Implementations whose body will never run."""
    for hook in host.records[name].hooks:
        for found in host.implementations(hook):
            function = inspect.unwrap(found.function)
            if found.plugin_name != name or found.wrapper:
                continue
            if inspect.iscoroutinefunction(function):
                yield f"{hook}: is an async function, which is called and never awaited; write def"
            collected = hook.startswith(("check_", "idle_", "collect_", "register_"))
            if inspect.isgeneratorfunction(function) and not collected:
                yield f"{hook}: has a yield, but not @hookimpl(wrapper=True), so that its body never runs"
