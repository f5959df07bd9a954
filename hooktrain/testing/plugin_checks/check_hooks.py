"""Hooks that exist, with the parameters that they have."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from types import FunctionType
from typing import Any

from hooktrain.errors import HooktrainError
from hooktrain.testing.plugin_checks.kit import Broken, Kit
from hooktrain.testing.plugin_checks.plugin_reference import Spec, prepared

__all__ = ["check_hooks", "facts"]


def check_hooks(kit: Kit) -> None:
    """Every implementation is of a hook that there is, takes its parameters, and is called."""
    found = kit.facts["problems"]
    if found:
        raise Broken(
            "\n".join(found),
            "an implementation is marked with @hookimpl, named after a hook, and takes a subset of its parameters,"
            " without defaults",
            "`hooktrain hooks` lists the hooks, `hooktrain hooks NAME` the parameters of one",
        )


def facts(spec: Spec) -> dict[str, Any]:
    """What loading the plugin tells, in a process of its own.

    Returns:
        ``problems`` with its functions; ``hooks`` that it implements, None where it cannot be loaded;
        ``changes_gradients``, what it declares; ``needed``, why the recipe does not do without it, or nothing.
    """
    plugin = spec.reference.load()
    problems, hooks, needed = list(_unmarked(plugin)), None, ""
    try:
        made = prepared(spec, "with")
        record = made.host.records.get(made.name)
        if record is None or record.state != "active":
            state, reason = (record.state, record.reason) if record else ("not there", "")
            problems.append(f"the plugin is {state}: {reason}")
        else:
            hooks = list(record.hooks)
            problems += _never_run(made.host, made.name)
    except HooktrainError as problem:
        problems.append(str(problem))
    try:
        prepared(spec, "without")
    except HooktrainError as problem:
        needed = " ".join(str(problem).split())
    return {"problems": problems, "hooks": hooks, "changes_gradients": _declared(plugin), "needed": needed}


def _declared(plugin: Any) -> bool:
    """Whether the plugin's own ``hooktrain_plugin`` says that it changes gradients."""
    home = sys.modules.get(str(getattr(plugin, "__module__", None) or getattr(plugin, "__name__", "")))
    info = getattr(plugin, "hooktrain_plugin", None) or getattr(home, "hooktrain_plugin", None)
    return bool(getattr(info, "changes_gradients", False))


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
