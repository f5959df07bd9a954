"""Checks of what plugins return from hooks whose results are collected, so that an error names the plugin."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from pluggy import HookImpl

from hooktrain.errors import Complaint, PluginError, described, failure_of
from hooktrain.types import ExtraModel, PerSecond

if TYPE_CHECKING:
    from hooktrain.plugin.manager import PluginHost

__all__ = ["guard_result", "wrong_result"]


def guard_result(host: PluginHost, hook: str, implementation: HookImpl) -> None:
    """Check each result of an implementation, where its hook is one of those whose results are collected."""
    check, function, plugin = _CHECKS.get(hook), implementation.function, implementation.plugin_name
    if check is None or implementation.wrapper:
        return

    def guarded(*arguments: Any) -> Any:
        result = function(*arguments)
        if result is None:
            return None
        try:
            return check(host, plugin, result)
        except PluginError:
            raise
        except Exception as problem:  # of a mapping or iterable of the plugin's own
            given = f"a {_kind(result)} that cannot be read ({described(problem)})"
            raise wrong_result(plugin, hook, f"{given}, expected what `hooktrain hooks {hook}` says") from problem

    guarded.__wrapped__ = function  # type: ignore[attr-defined]
    setattr(implementation, "function", guarded)  # noqa: B010 - as in guard_loop_hook


def wrong_result(plugin: str, hook: str, problem: str) -> PluginError:
    """Return the error for a plugin's result; ``problem`` says what it is, what is expected and what to do."""
    made = PluginError(f"plugin '{plugin}', hook {hook}: returned {problem}")
    failure_of(made).raised_in = plugin, hook  # no frame of it is on the traceback
    return made


def _metrics(host: PluginHost, plugin: str, result: Any) -> dict[str, Any]:
    made = _mapping(plugin, "collect_metrics", result, "numbers and tensors of shape () by name")
    for name, value in made.items():
        owner = host.metric_owners.get(name, plugin)
        if owner != plugin:
            raise wrong_result(
                plugin,
                "collect_metrics",
                f"'{name}', expected a name that is free, and {owner} logs this one; give it another name, such as"
                f" my_plugin/{name}",
            )
        problem = _no_number(value.amount if isinstance(value, PerSecond) else value)
        if problem:
            raise wrong_result(
                plugin,
                "collect_metrics",
                f"{problem} as '{name}', expected a number or a tensor of one; leave it out, or give its mean or norm",
            )
    host.metric_owners.update(dict.fromkeys(made, plugin))
    return made


def _no_number(value: Any) -> str:
    """Return what a value is, where it is no number and no tensor of one; nothing is read from a device."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        fits = value.numel() == 1 and not value.is_complex() and not value.is_meta and not value.is_sparse
        return "" if fits else f"a tensor of shape {tuple(value.shape)} ({value.dtype}, {value.device.type})"
    if value is None:
        return ""
    if isinstance(value, (str, bytes)):
        return f"text ({value[:40]!r})"
    try:
        float(value)
    except Exception as problem:
        return f"a {_kind(value)} ({described(problem)})"
    return ""


def _state(host: PluginHost, plugin: str, result: Any) -> dict[str, Any]:
    return _mapping(plugin, "collect_state", result, "JSON values and tensors by name")


def _models(host: PluginHost, plugin: str, result: Any) -> dict[str, Any]:
    made = _mapping(plugin, "make_models", result, "hooktrain.ExtraModel by name")
    for name, extra in made.items():
        if not isinstance(extra, ExtraModel):
            given = f"a {_kind(extra)} as '{name}'"
            raise wrong_result(plugin, "make_models", f"{given}, expected hooktrain.ExtraModel(build)")
        owner = host.model_owners.setdefault(name, plugin)
        taken = "is the run's own model" if name == "model" else f"{owner} returns one too" if owner != plugin else ""
        if taken or not name.isidentifier():
            expected = f"a name that is free, as '{name}' {taken}" if taken else "a name such as reference"
            raise wrong_result(plugin, "make_models", f"the name '{name}', expected {expected}; give it another name")
    return made


def _terms(host: PluginHost, plugin: str, result: Any) -> dict[str, Any]:
    made = _mapping(plugin, "collect_loss_terms", result, "hooktrain.LossTerm by name")
    return made if host.loss_terms is None else host.loss_terms.checked(plugin, made)


def _term_counts(host: PluginHost, plugin: str, result: Any) -> dict[str, Any]:
    made = _mapping(plugin, "count_loss_terms", result, "numbers by name")
    return made if host.loss_terms is None else host.loss_terms.checked_counts(plugin, made)


def _mapping(plugin: str, hook: str, result: Any, expected: str) -> dict[str, Any]:
    if not isinstance(result, Mapping):
        raise wrong_result(plugin, hook, f"a {_kind(result)}, expected a mapping of {expected}, or None")
    made = dict(result)
    for name in made:
        if not isinstance(name, str):
            raise wrong_result(plugin, hook, f"the key {name!r}, expected text; write str(...) around it")
    return made


def _complaints(hook: str, host: PluginHost, plugin: str, result: Any) -> tuple[Complaint, ...]:
    made, wrong = _items(result, Complaint)
    if wrong is not None:
        expected = "expected hooktrain.Complaint(where, message) for each problem, and None or [] where there is none"
        raise wrong_result(plugin, hook, f"{repr(wrong)[:80]}, {expected}")
    return made


def _hook_names(host: PluginHost, plugin: str, result: Any) -> tuple[str, ...]:
    made, wrong = _items(result, str)
    if wrong is not None:
        raise wrong_result(plugin, "unused_hooks", f"{repr(wrong)[:80]}, expected a list of names of hooks")
    return made


def _items(result: Any, kind: type) -> tuple[tuple[Any, ...], Any]:
    """Return the items of a result, and the first that is of another kind; a text has no items."""
    if isinstance(result, (str, bytes)):
        return (), result
    made = tuple(result)
    return made, next((item for item in made if not isinstance(item, kind)), None)


def _kind(value: Any) -> str:
    return type(value).__qualname__


_CHECKS: Mapping[str, Callable[[PluginHost, str, Any], Mapping[str, Any] | Iterable[Any]]] = {
    "collect_metrics": _metrics,
    "collect_state": _state,
    "collect_loss_terms": _terms,
    "count_loss_terms": _term_counts,
    "make_models": _models,
    "check_recipe": partial(_complaints, "check_recipe"),
    "check_files": partial(_complaints, "check_files"),
    "unused_hooks": _hook_names,
}
