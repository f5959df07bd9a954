"""``hooktrain hooks``: every hook, what it is for, and who implements it in which order."""

from __future__ import annotations

import inspect
from typing import Any

from rich.markup import escape

from hooktrain import hookspecs
from hooktrain.compat import code_of, module_name_of
from hooktrain.errors import HooktrainError, did_you_mean
from hooktrain.hookspecs import EVENTS, HOOKS, KINDS, LOOP_HOOKS
from hooktrain.inspection.terminal import columns, console, is_terminal, show
from hooktrain.plugin.manager import PluginHost
from hooktrain.plugin.ordering import is_declined

__all__ = ["file_of", "hooks_of", "implementations_of", "print_hooks", "who"]


def hooks_of(host: PluginHost, name: str | None = None) -> list[dict[str, Any]]:
    """The hooks, or the one that is named: kind, documentation, parameters, implementations in call order."""
    declared = [*vars(hookspecs), *vars(host.manager.hook)]  # pluggy sorts by name what is written in a better order
    found = vars(host.manager.hook)
    callers = {hook: found[hook] for hook in declared if hook in found and found[hook].spec is not None}
    if name is not None and name not in callers:
        raise HooktrainError(f"no hook is named '{name}'{did_you_mean(name, callers)}; `hooktrain hooks` lists them")
    facts = []
    for hook, caller in callers.items():
        if name not in (None, hook):
            continue
        home = module_name_of(caller.spec.namespace)
        facts.append(
            {
                "name": hook,
                "kind": _kind(hook),
                "declared_in": home,
                "parameters": list(caller.spec.argnames),
                "documentation": inspect.getdoc(caller.spec.function) or "",
                "implementations": implementations_of(host, hook),
            }
        )
    return facts


def implementations_of(host: PluginHost, hook: str) -> list[dict[str, Any]]:
    """Return the implementations of a hook in the order in which they are called, wrappers first.

    ``role`` is ``wraps``, ``is called`` (an event), ``is tried`` (a factory or a question), ``collected``, or for a
    loop hook ``runs``, ``not chosen`` by the recipe, or ``not called``.
    """
    spec = getattr(host.manager.hook, hook).spec
    first = spec is not None and bool(spec.opts.get("firstresult"))
    found = []
    answered = False
    for each in host.implementations(hook):
        role = "wraps" if each.wrapper else "is called" if hook in EVENTS else "is tried" if first else "collected"
        if is_declined(each):
            role = "not chosen"
        elif hook in LOOP_HOOKS and not each.wrapper:
            role, answered = ("not called" if answered else "runs"), True
        found.append({"plugin": each.plugin_name, "role": role, "file": file_of(each.function)})
    return found


def who(implementations: list[dict[str, Any]]) -> str:
    """The implementations of a hook in one line."""
    said = {role: f" ({role})" for role in ("wraps", "not chosen", "not called")}
    return ", ".join(each["plugin"] + said.get(each["role"], "") for each in implementations)


def print_hooks(facts: list[dict[str, Any]]) -> None:
    """The facts of :func:`hooks_of` for people."""
    to = console()
    if len(facts) == 1:
        (fact,) = facts
        to.print(f"[bold]{fact['name']}[/]({', '.join(fact['parameters'])})", soft_wrap=True)
        to.print(f"[dim]{fact['kind']}, declared in {fact['declared_in']}[/]\n", soft_wrap=True)
        print(fact["documentation"])
        to.print("\n[bold]Implemented, in call order, by[/]" if fact["implementations"] else "\nNobody implements it.")
        table = columns("", "", "", header=False)
        for each in fact["implementations"]:
            table.add_row(f"  {escape(each['plugin'])}", each["role"], f"[dim]{escape(each['file'])}[/]")
        if fact["implementations"]:
            show(to, table)
        return
    kinds: dict[str, list[dict[str, Any]]] = {}
    for fact in facts:
        kinds.setdefault(fact["kind"], []).append(fact)
    width = max(len(fact["name"]) for fact in facts)
    for kind, members in kinds.items():
        to.print(f"\n[bold]{kind}[/]")
        table = columns("", "", header=False)
        table.columns[0].min_width = width
        for fact in members:
            said = [escape(fact["documentation"].partition("\n")[0])]
            if fact["implementations"]:
                said.append(f"[cyan]{escape(who(fact['implementations']))}[/]")
            table.add_row(fact["name"], ("\n" if is_terminal() else "  | ").join(said))
        show(to, table)
    if is_terminal():
        to.print("\n[dim]Implementations stand in call order; `hooktrain hooks NAME` shows a hook in full.[/]")


def _kind(hook: str) -> str:
    if hook not in HOOKS:
        return "brought by a plugin"
    return f"{HOOKS[hook].kind}: {KINDS[HOOKS[hook].kind]}"


def file_of(function: Any) -> str:
    """Return the place of a function as ``file:line``."""
    code = code_of(function)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else ""
