"""Checks that the plugin implements hooks that exist, with their parameters."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import FunctionType
from typing import Any

from hooktrain.compat import function_of
from hooktrain.errors import HooktrainError
from hooktrain.hookspecs import COLLECTED, HOOKS, LOOP_HOOKS
from hooktrain.plugin.records import PluginRecord
from hooktrain.testing.plugin_checks.kit import Broken, Kit
from hooktrain.testing.plugin_checks.plugin_reference import Spec, prepared

__all__ = ["check_hooks", "facts"]


def check_hooks(kit: Kit) -> None:
    """Check that every implementation is of an existing hook, takes its parameters, and is called."""
    found = kit.facts["problems"]
    if found:
        raise Broken(
            "\n".join(found),
            "an implementation of a hook is marked with @hookimpl, has the hook's name, and takes some or all of its"
            " parameters, without defaults",
            "correct the name or the parameters: `hooktrain hooks` lists the hooks, `hooktrain hooks NAME` shows one",
        )


def facts(spec: Spec) -> dict[str, Any]:
    """Load the plugin, in a process of its own.

    Returns:
        ``problems`` with its functions; ``hooks`` that it implements, None where it cannot be loaded;
        ``name`` in the run; ``changes_gradients``, as it declares; ``needed``, why the recipe does not run without it,
        or nothing.
    """
    plugin = spec.reference.load()
    problems, hooks, needed, changes_gradients, name = list(_unmarked(plugin)), None, "", False, ""
    try:
        made = prepared(spec, "with")
        name, record = made.name, made.host.records.get(made.name)
        if record is None or record.state != "active":
            state, reason = (record.state, record.reason) if record else ("not loaded", "")
            problems.append(f"the plugin is {state}: {reason}")
        else:
            hooks, changes_gradients = list(record.hooks), record.info.changes_gradients
            problems += [*_never_run(made.host, made.name), *_undeclared_use(record)]
    except HooktrainError as problem:
        problems.append(str(problem))
    try:
        prepared(spec, "without")
    except HooktrainError as problem:
        needed = " ".join(str(problem).split())
    return {
        "problems": problems,
        "hooks": hooks,
        "name": name,
        "changes_gradients": changes_gradients,
        "needed": needed,
    }


def _functions(plugin: Any) -> Iterator[tuple[str, Any]]:
    """Yield the functions of a plugin's module or class, without those that it imports."""
    module = plugin if inspect.ismodule(plugin) else None
    for name in dir(plugin):
        function = function_of(inspect.getattr_static(plugin, name, None))
        if isinstance(function, FunctionType) and (module is None or function.__module__ == module.__name__):
            yield name, function


def _unmarked(plugin: Any) -> Iterator[str]:
    """Yield an error for each function that has a hook's name and is not marked."""
    for name, function in _functions(plugin):
        if name in HOOKS and "hooktrain_impl" not in vars(function):
            yield f"{name}: has the name of a hook, but is not marked with @hookimpl, so it is never called"


def _undeclared_use(record: PluginRecord) -> Iterator[str]:
    """Yield an error where the plugin implements loop hooks and does not say which runs use it."""
    found = [hook for hook in record.hooks if hook in LOOP_HOOKS]
    if found and record.info.active_when is None:
        yield (
            f"{', '.join(found)}: a plugin that implements loop hooks clashes with others that do, in runs that use"
            " none of them too; declare PluginInfo(active_when=...), a function of the recipe that says whether a run"
            " uses the plugin, such as `lambda recipe: recipe.settings['NAME'].enabled`"
        )


def _never_run(host: Any, name: str) -> Iterator[str]:
    """Yield an error for each implementation whose body never runs."""
    for hook in host.records[name].hooks:
        for found in host.implementations(hook):
            function = inspect.unwrap(found.function)
            if found.plugin_name != name or found.wrapper:
                continue
            if inspect.iscoroutinefunction(function):
                yield f"{hook}: is an async function, which is called but never awaited; write def"
            if inspect.isgeneratorfunction(function) and hook not in COLLECTED:
                yield f"{hook}: has a yield, but not @hookimpl(wrapper=True), so its body never runs"
