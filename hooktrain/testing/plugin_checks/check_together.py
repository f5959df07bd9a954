"""Checks that the plugin works together with others that implement the same hooks."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from hooktrain import hookspecs
from hooktrain.hookspecs import EVENTS, FACTORIES, LOOP_HOOKS
from hooktrain.markers import hookimpl
from hooktrain.plugin.info import PluginInfo
from hooktrain.testing.plugin_checks import child_run
from hooktrain.testing.plugin_checks.check_observes import changes_gradients
from hooktrain.testing.plugin_checks.kit import Broken, Kit, NotApplicable, Training
from hooktrain.testing.plugin_checks.plugin_reference import Spec

__all__ = ["check_together"]

_FIRST, _LAST = "called_before", "called_after"
_BATCHES = ("batch", "batches")
_COMPARED = ("sequences of each step", "logged numbers", "weights", "optimizer's tensors", "random states")


def check_together(kit: Kit) -> None:
    """Check that a run with two more plugins that implement the same hooks is the same, and that these lack nothing.

    One is called before the plugin at each hook and one after it. Neither does anything.
    """
    hooks = [hook for hook in kit.facts["hooks"] or () if hook in (*EVENTS, *LOOP_HOOKS, *FACTORIES, *_COLLECTED)]
    if not hooks and kit.facts["hooks"] is not None:
        raise NotApplicable("the plugin implements no hook that a run calls")
    (alone,) = kit.runs(Training("uninterrupted", "with"))
    one = kit.need_all(alone, "a run with the plugin")[0]
    arguments = {"plugin": kit.facts["name"], "hooks": hooks, "folder": str(kit.folder / "together" / "run")}
    done = kit.start("together", f"{__name__}:_run", spec=kit.spec, **arguments)
    two = kit.need(done, "a run with the plugin, and with one before and one after it that implement the same hooks,")
    rule = "plugins of several authors are active in one run, and each hook calls all of them with the same arguments"
    changed = [text for names, text in two["changed"] if not (changes_gradients(kit) and set(names) <= {*_BATCHES})]
    if changed:
        raise Broken(
            "; ".join(changed[:4]) + ": the plugins that are called after it get what it left",
            rule,
            "work on a copy, such as dict(metrics); return metrics of its own from collect_metrics",
        )
    from hooktrain.compare import differences

    lines = two["logged numbers"]
    lost = [
        name for name in (_FIRST, _LAST) if "collect_metrics" in hooks and not any(name in x for x in lines.values())
    ]
    if lost:
        raise Broken(
            f"the metrics {', '.join(lost)}, which the others return from collect_metrics, are in no log line",
            rule,
            "return everything that `result = yield` gives from a wrapper, with what the plugin adds",
        )
    two["logged numbers"] = {
        step: {name: value for name, value in line.items() if name not in (_FIRST, _LAST)}
        for step, line in lines.items()
    }
    for what in _COMPARED:
        ignored = set(kit.options.ignore) if what == "logged numbers" else set()
        first, second = ({key: _without(value, ignored) for key, value in found[what].items()} for found in (one, two))
        found = list(differences(first, second, names=("the run with it alone", "the run with the others")))
        if found:
            raise Broken(
                f"a run with the plugin, and one with two others that implement the same hooks and do nothing, differ."
                f" {what}: {found[0]}",
                rule,
                "look for code that counts plugins or their results, or that takes the first of them",
            )
    kit.notes["together"] = f"the same with two others at {len(hooks)} hooks"


_COLLECTED = ("collect_metrics", "collect_state", "restore_state")


def _without(value: Any, names: set[str]) -> Any:
    return {key: item for key, item in value.items() if key not in names} if isinstance(value, Mapping) else value


def _run(spec: Spec, plugin: str, hooks: Sequence[str], folder: str) -> dict[str, Any]:
    """Run the recipe with the plugin between two others; in a process of its own."""
    changed: list[tuple[list[str], str]] = []
    before: list[tuple[str, dict[str, Any]]] = []

    def note(hook: str, given: Mapping[str, Any]) -> None:
        before.append((hook, _contents(given)))

    def compare(hook: str, given: Mapping[str, Any]) -> None:
        while before and before[-1][0] != hook:  # the plugin ended an error in a nested event
            before.pop()
        if before:
            was, now = before.pop()[1], _contents(given)
            names = [name for name in was if was[name] != now[name]]
            if names:
                changed.append((names, f"{hook}: changes its argument {', '.join(names)}"))

    last = [hook for hook in hooks if hook not in LOOP_HOOKS]  # the plugin has done what these do
    others = [_plugin(_FIRST, hooks, note), _plugin(_LAST, last or ["on_train_end"], compare)]
    order = [
        _FIRST,
        *[each for each in spec.raw("with")["plugins"].get("order", [plugin]) if each != plugin],
        plugin,
        _LAST,
    ]
    found = child_run.run(spec, "with", folder, {"plugins.order": order}, plugins=others)
    return {**found, "changed": changed}


def _plugin(name: str, hooks: Sequence[str], called: Any) -> Any:
    """Return a plugin with these hooks, of which ``called`` gets the events with their arguments."""
    info = PluginInfo(name=name, only_observes=True)
    members: dict[str, Any] = {"hooktrain_plugin": info, "__module__": "another"}  # and none of the engine's own
    for hook in hooks:
        parameters = ", ".join(inspect.signature(getattr(hookspecs, hook)).parameters)
        if hook in EVENTS:
            body = f"called('{hook}', dict({', '.join(f'{each}={each}' for each in parameters.split(', '))}))"
        else:
            body = f"return {_RETURNED.get(hook, 'NotImplemented' if hook in LOOP_HOOKS else 'None')}"
        scope: dict[str, Any] = {"called": called, "name": name}
        exec(f"def {hook}(self, {parameters}): {body}", scope)
        members[hook] = hookimpl(scope[hook])
    return type(name, (), members)()


_RETURNED = {"collect_metrics": "{name: 1.0}", "collect_state": "{name: 1}"}


def _contents(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what mappings among the arguments of a hook hold, by the identity of tensors."""
    made: dict[str, Any] = {}
    for name, value in given.items():
        if name in _BATCHES:
            batches = [value] if name == "batch" else value
            made[name] = [{key: id(item) for key, item in batch.items()} for batch in batches]
        elif isinstance(value, Mapping):
            made[name] = dict(value)
    return made
