"""Validation of hook implementations."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import pluggy
from pluggy import HookImpl

from hooktrain import hookspecs
from hooktrain.compat import function_of
from hooktrain.errors import PluginError
from hooktrain.plugin.records import PluginRecord

__all__ = [
    "ALONE",
    "PluginManager",
    "check_signatures",
    "device_rule",
    "implemented",
    "parameters",
    "pluggy_silent",
    "retired",
]

ALONE = (
    "on_exception",
    "on_teardown",
    "collect_state",
    "restore_state",
    "register_configs",
    "register_trainer_types",
    "unused_hooks",
)
"""Hooks that are called plugin by plugin, and therefore cannot be wrapped."""


def implemented(plugin: object) -> list[str]:
    """Names of the functions that are marked as hook implementations."""
    kind = plugin if inspect.isclass(plugin) else type(plugin)
    found: dict[str, Any] = {}
    for owner in (*reversed(kind.__mro__), plugin):  # nothing is called, as a property would be by getattr
        with contextlib.suppress(TypeError):  # an object with slots
            found.update(vars(owner))
    functions = ((name, function_of(value)) for name, value in found.items())
    return sorted(name for name, value in functions if inspect.isfunction(value) and "hooktrain_impl" in vars(value))


class PluginManager(pluggy.PluginManager):
    """A plugin manager that looks up marked functions alone, as a module has many names."""

    def register(self, plugin: Any, name: str | None = None) -> str | None:
        self._marked = implemented(plugin)
        return super().register(plugin, name)

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        return super().parse_hookimpl_opts(plugin, name) if name in self._marked else None


def parameters(plugin: object) -> dict[str, list[str]]:
    """Return the parameters that a plugin's hook implementations name, by hook."""
    return {
        name: [each for each in inspect.signature(getattr(plugin, name)).parameters if each != "self"]
        for name in implemented(plugin)
    }


def check_signatures(record: PluginRecord, plugin: object) -> None:
    """Refuse what pluggy treats differently from version to version, or delays until it hurts."""
    for name in implemented(plugin):
        function = getattr(plugin, name)
        options = function.hooktrain_impl
        if options.get("hookwrapper"):
            raise PluginError(f"{record}, hook {name}: hookwrapper=True is the old style; write wrapper=True")
        if options.get("wrapper") and name in ALONE:
            raise PluginError(f"{record}, hook {name}: is called for each plugin alone; it cannot have wrappers")
        if options.get("wrapper") and not inspect.isgeneratorfunction(inspect.unwrap(function)):
            raise PluginError(
                f"{record}, hook {name}: is a wrapper without a yield; write `result = yield` where the others are to"
                " be called, and return the result"
            )
        if options.get("specname"):
            raise PluginError(f"{record}, hook {name}: specname is not supported; name the function after its hook")
        for argument in inspect.signature(function).parameters.values():
            if argument.default is not argument.empty:
                raise PluginError(
                    f"{record}, hook {name}: parameter '{argument.name}' has a default value, but a hook always gets"
                    " all of its arguments; remove the default"
                )
            if argument.kind is argument.KEYWORD_ONLY:
                raise PluginError(f"{record}, hook {name}: parameter '{argument.name}' is keyword-only; remove the '*'")
            if argument.kind in (argument.VAR_KEYWORD, argument.VAR_POSITIONAL):
                raise PluginError(
                    f"{record}, hook {name}: '*{argument.name}' gets nothing; name the parameters you need"
                )


def device_rule(hook: str) -> str:
    """Return whether an engine's hook ``must not touch`` a device, ``must not wait`` for it, or ``may wait`` for it."""
    return hookspecs.HOOKS[hook].device if hook in hookspecs.HOOKS else ""


@contextlib.contextmanager
def pluggy_silent() -> Iterator[None]:
    """Keep pluggy from warning of what is retired: it does not say who takes it, as :func:`retired` does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def retired(manager: pluggy.PluginManager) -> Iterator[tuple[HookImpl, str, Warning]]:
    """The implementations that take what a hook's declaration calls retired, the hook's name, and what to tell."""
    for name, caller in vars(manager.hook).items():
        spec = caller.spec
        for found in caller.get_hookimpls() if spec is not None else ():
            told = spec.warn_on_impl_args or {}
            yield from ((found, name, told[argument]) for argument in found.argnames if argument in told)
            if spec.warn_on_impl is not None:
                yield found, name, spec.warn_on_impl
