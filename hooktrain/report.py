"""What ``hooktrain plugins``, ``hooks`` and ``plan`` say: facts first, as plain values, then how they are printed."""

from __future__ import annotations

import inspect
from typing import Any

import attrs
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hooktrain.errors import HooktrainError, did_you_mean
from hooktrain.hookspecs import BOUNDARIES, FACTORIES, SEGMENTS
from hooktrain.plugins import PluginHost
from hooktrain.recipe import Recipe

__all__ = ["hooks_of", "plan_of", "plugins_of", "print_hooks", "print_plan", "print_plugins"]


def plugins_of(host: PluginHost) -> list[dict[str, Any]]:
    """Every plugin that was found, whatever became of it."""
    import click

    facts = []
    for record in host.records.values():
        facts.append({**attrs.asdict(record), "commands": []})
    group = click.Group()
    for found in host.implementations("register_commands"):
        before = set(group.commands)
        found.function(group)
        names = sorted(set(group.commands) - before)
        next(fact for fact in facts if fact["name"] == found.plugin_name)["commands"] = names
    return facts


def hooks_of(host: PluginHost, name: str | None = None) -> list[dict[str, Any]]:
    """The hooks, or the one that is named: kind, documentation, parameters, implementations in call order."""
    callers = vars(host.manager.hook)
    if name is not None and name not in callers:
        raise HooktrainError(f"no hook is named '{name}'{did_you_mean(name, callers)}; `hooktrain hooks` lists them")
    facts = []
    for hook, caller in callers.items():
        if caller.spec is None or name not in (None, hook):
            continue
        facts.append(
            {
                "name": hook,
                "kind": _kind(hook),
                "parameters": [a for a in caller.spec.argnames],
                "documentation": inspect.getdoc(caller.spec.function) or "",
                "implementations": implementations_of(host, hook),
            }
        )
    return facts


def implementations_of(host: PluginHost, hook: str) -> list[dict[str, Any]]:
    """Who implements a hook, in the order in which they are called, wrappers first."""
    found = []
    answers = False
    for each in host.implementations(hook):
        role = "wraps" if each.wrapper else "hears" if hook in BOUNDARIES else "answers"
        if hook in SEGMENTS and not each.wrapper:
            role, answers = ("would answer" if answers else "answers"), True
        found.append({"plugin": each.plugin_name, "role": role, "file": _file(each.function)})
    return found


def plan_of(recipe: Recipe, host: PluginHost) -> dict[str, Any]:
    """What a run of the recipe would consist of."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for kind in dict.fromkeys(FACTORIES.values()):
        configs = getattr(recipe, kind, None)
        for config in configs if isinstance(configs, tuple) else () if configs is None else (configs,):
            offer = next(o for o in host.offers[kind].values() if o.config is type(config))
            parts.setdefault(kind, []).append({"type": offer.name, "plugin": offer.plugin.name})
    wrapped = {
        kind: [f["plugin"] for f in implementations_of(host, hook) if f["role"] == "wraps"]
        for hook, kind in FACTORIES.items()
    }
    for kind, chosen in parts.items():
        for part in chosen:
            part["wrapped_by"] = wrapped.get(kind, [])
    hooks = {}
    for hook, caller in vars(host.manager.hook).items():
        if caller.spec is not None and caller.get_hookimpls() and not hook.startswith("register_"):
            hooks[hook] = implementations_of(host, hook)
    plugins = [attrs.asdict(record) for record in host.records.values()]
    lifted = recipe.skip_validation
    return {
        "recipe": recipe.as_dict(),
        "parts": parts,
        "hooks": hooks,
        "plugins": plugins,
        "compatibility_lifted": lifted,
    }


# ------------------------------------------------------------------------------------------------ printing


def print_plugins(facts: list[dict[str, Any]]) -> None:
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("plugin", "distribution", "state", "offers"):
        table.add_column(column, overflow="fold")
    for fact in facts:
        distribution = f"{fact['distribution']} {fact['version']}".strip()
        offers = ", ".join([*fact["offers"], *(f"command {name}" for name in fact["commands"])])
        colour = {"active": "green", "blocked": "yellow", "failed": "red"}[fact["state"]]
        table.add_row(fact["name"], distribution, f"[{colour}]{fact['state']}[/]", escape(offers))
    console.print(table)
    for fact in facts:
        if fact["reason"]:
            console.print(f"{escape(fact['name'])}: {escape(fact['reason'])}", soft_wrap=True)


def print_hooks(facts: list[dict[str, Any]]) -> None:
    console = Console(highlight=False)
    if len(facts) == 1:
        (fact,) = facts
        console.print(f"[bold]{fact['name']}[/]({', '.join(fact['parameters'])})  [dim]{fact['kind']}[/]\n")
        console.print(escape(fact["documentation"]), soft_wrap=not console.is_terminal)
        console.print("\nImplemented, in call order, by:" if fact["implementations"] else "\nNobody implements it.")
        for each in fact["implementations"]:
            console.print(f"  {escape(each['plugin'])}  {each['role']}  [dim]{escape(each['file'])}[/]", soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("hook", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("implemented by", overflow="fold")
    for fact in facts:
        who = ", ".join(
            each["plugin"] + (" (wraps)" if each["role"] == "wraps" else "") for each in fact["implementations"]
        )
        table.add_row(fact["name"], fact["kind"], escape(who))
    console.print(table)


def print_plan(facts: dict[str, Any]) -> None:
    console = Console(highlight=False)
    console.print("[bold]recipe[/]")
    console.print(escape(yaml.safe_dump(facts["recipe"], sort_keys=False, allow_unicode=True)), soft_wrap=True)
    console.print("[bold]parts[/]")
    for kind, chosen in facts["parts"].items():
        for part in chosen:
            wrapped = f", wrapped by {', '.join(part['wrapped_by'])}" if part["wrapped_by"] else ""
            console.print(f"  {kind:<11} {escape(part['type'])} from plugin {escape(part['plugin'])}{wrapped}")
    if facts["compatibility_lifted"]:
        console.print("  [yellow]skip_validation is on: parts are used that the trainer type does not list[/]")
    console.print("\n[bold]hooks[/], implementations in call order")
    for hook, found in facts["hooks"].items():
        who = ", ".join(
            each["plugin"] + {"wraps": " (wraps)", "would answer": " (not reached)"}.get(each["role"], "")
            for each in found
        )
        console.print(f"  {hook:<24} {escape(who)}", soft_wrap=True)
    console.print("\n[bold]plugins[/]")
    for record in facts["plugins"]:
        why = f": {record['reason']}" if record["reason"] else ""
        name = f"{record['name']} ({record['distribution']} {record['version']})".replace(" )", ")")
        console.print(f"  {record['state']:<8} {escape(name + why)}", soft_wrap=True)


def _kind(hook: str) -> str:
    if hook in FACTORIES:
        return "factory"
    if hook in SEGMENTS:
        return "segment"
    return (
        "boundary"
        if hook in BOUNDARIES
        else "collected"
        if hook.startswith(("register_", "check_", "collect_"))
        else "hook"
    )


def _file(function: Any) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else ""
