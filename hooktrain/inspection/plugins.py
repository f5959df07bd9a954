"""``hooktrain plugins``: what is installed, what it brings, and what became of it."""

from __future__ import annotations

import inspect
from typing import Any

from rich.console import Console
from rich.markup import escape

from hooktrain.errors import HooktrainError, did_you_mean
from hooktrain.hookspecs import LOOP_HOOKS
from hooktrain.inspection.hooks import file_of, implementations_of
from hooktrain.inspection.terminal import STATES, columns, console, is_terminal, show
from hooktrain.plugin.commands import plugin_commands
from hooktrain.plugin.dependencies import drop_unmet
from hooktrain.plugin.manager import PluginHost

__all__ = ["plugins_of", "print_plugin", "print_plugins"]

_OWN = "hooktrain"


def plugins_of(host: PluginHost, name: str | None = None) -> list[dict[str, Any]]:
    """Every plugin that was found, or the one that is named, whatever became of it.

    Raises:
        HooktrainError: when there is none of that name.
    """
    drop_unmet(host)
    if name is not None and name not in host.records:
        raise HooktrainError(
            f"no plugin is named '{name}'{did_you_mean(name, host.records)}; there are {', '.join(host.records)}"
        )
    commands = plugin_commands().values()
    roles = {hook: implementations_of(host, hook) for record in host.records.values() for hook in record.hooks}
    facts = []
    for record in host.records.values():
        if name not in (None, record.name):
            continue
        plugin = host.manager.get_plugin(record.name)
        shadowed = [
            {"hook": hook, "by": next(other["plugin"] for other in found if other["role"] == "runs")}
            for hook, found in roles.items()
            for each in found
            if each["plugin"] == record.name and each["role"] == "not called" and hook in LOOP_HOOKS
        ]
        wraps = [h for h, found in roles.items() for e in found if e["plugin"] == record.name and e["role"] == "wraps"]
        facts.append(
            {
                **record.as_dict(),
                "wraps": sorted(wraps),
                "shadowed": shadowed,
                "commands": sorted(
                    {each.name for each in commands if each.distribution == record.distribution}
                    | {*record.info.commands}
                ),
                "documentation": "" if plugin is None else _documentation(plugin),
                "file": "" if plugin is None else _home(plugin),
                "parts": _parts(host, record),
            }
        )
    return facts


def _parts(host: PluginHost, record: Any) -> list[dict[str, str]]:
    """Return the parts that a plugin registers, with a line about each."""
    made = []
    for kind, offers in host.parts.items():
        for offer in offers.values():
            if offer.plugin is record and offer.listed:
                made.append({"kind": kind, "name": offer.name, "summary": _sentence(inspect.getdoc(offer.config))})
    for name, (trainer_type, owner) in host.trainer_types.items():
        if owner is record and trainer_type.listed:
            made.append({"kind": "type", "name": name, "summary": trainer_type.summary})
    return made


def _documentation(plugin: object) -> str:
    owner = plugin if inspect.ismodule(plugin) or inspect.isclass(plugin) else type(plugin)
    return _sentence(owner.__doc__)


def _home(plugin: object) -> str:
    if inspect.ismodule(plugin):
        return plugin.__file__ or ""
    first = next((value for value in vars(type(plugin)).values() if inspect.isfunction(value)), None)
    return file_of(first).rpartition(":")[0] if first else ""


def _sentence(text: str | None) -> str:
    """The first sentence of a docstring, on one line."""
    return " ".join((text or "").strip().partition("\n\n")[0].split()).replace("``", "`")


def print_plugins(facts: list[dict[str, Any]]) -> None:
    """The facts of :func:`plugins_of` for people: a line for each plugin, and what is wrong below."""
    to = console()
    table = columns("plugin", "from", "state", "registers")
    wide = to.width >= 110
    if wide:
        table = columns("plugin", "from", "state", "hooks", "registers")
    for fact in facts:
        state = f"[{STATES[fact['state']]}]{fact['state']}[/]{'*' if fact['shadowed'] else ''}"
        row = [escape(fact["name"]), escape(_from(fact)), state, _offers(fact)]
        if wide:
            row.insert(3, str(len(fact["hooks"])))
        table.add_row(*row)
    show(to, table)
    for fact in facts:
        for line in _troubles(fact):
            to.print(f"\n{line}" if is_terminal() else line, soft_wrap=True)
    if is_terminal():
        to.print("\n[dim]`hooktrain plugins NAME` shows one in full, `hooktrain hooks` who implements what.[/]")


def print_plugin(facts: list[dict[str, Any]]) -> None:
    """One plugin in full."""
    to = console()
    (fact,) = facts
    to.print(f"[bold]{escape(fact['name'])}[/]  [{STATES[fact['state']]}]{fact['state']}[/]")
    for line in _troubles(fact):
        to.print(line, soft_wrap=True)
    table = columns("", "", header=False)
    for title, text in (
        ("does", fact["documentation"]),
        ("from", _from(fact)),
        ("about", fact["summary"]),
        ("author", fact["author"]),
        ("code", fact["file"]),
        ("declares", _declared(fact["info"])),
        ("commands", ", ".join(fact["commands"])),
        ("hooks", ", ".join(hook for hook in fact["hooks"] if hook not in fact["wraps"])),
        ("wraps", ", ".join(fact["wraps"])),
    ):
        if text:
            table.add_row(f"[dim]{title}[/]", escape(text))
    show(to, table)
    if fact["parts"]:
        _print_parts(to, fact["parts"])


def _print_parts(to: Console, parts: list[dict[str, str]]) -> None:
    to.print("\n[bold]offers[/]")
    table = columns("", "", header=False)
    for part in parts:
        table.add_row(escape(f"  {_spelled(part)}"), f"[dim]{escape(part['summary'])}[/]")
    show(to, table)


def _spelled(part: dict[str, str]) -> str:
    """Return the text with which a recipe selects a part."""
    kinds = {"settings": f"{part['name']}: ...", "type": f"type: {part['name']}"}
    return kinds.get(part["kind"], f"{part['kind']}: {{type: {part['name']}}}")


def _declared(info: dict[str, Any]) -> str:
    """Return a plugin's declarations that are no defaults, as text."""
    said = [f"hooks {info['api']}" if info["api"] else ""]
    said += [f"{key} {', '.join(info[key])}" for key in ("requires", "excludes") if info[key]]
    said += [key.replace("_", " ") for key in ("needs_logits", "changes_gradients") if info[key]]
    said += [f"on_error: {info['on_error']}" if info["on_error"] != "stop" else ""]
    return "; ".join(filter(None, said))


def _from(fact: dict[str, Any]) -> str:
    return f"{fact['distribution']} {fact['version']}".strip()


def _offers(fact: dict[str, Any]) -> str:
    """Parts by kind, and commands."""
    kinds: dict[str, list[str]] = {}
    for offer in fact["registers"]:
        kind, _, name = offer.partition("/")
        kinds.setdefault(kind, []).append(name)
    if fact["commands"]:
        kinds["command"] = fact["commands"]
    return "; ".join(f"[dim]{escape(kind)}[/] {escape(', '.join(names))}" for kind, names in kinds.items())


def _troubles(fact: dict[str, Any]) -> list[str]:
    """Return lines about a plugin that is not active, or is not called."""
    lines = []
    name = f"[bold]{escape(fact['name'])}[/]"
    if fact["reason"]:
        lines.append(f"{name}: {escape(' '.join(fact['reason'].split()))}")
    reached: dict[str, list[str]] = {}
    for each in fact["shadowed"]:
        reached.setdefault(each["by"], []).append(each["hook"])
    for by, hooks in reached.items():
        lines.append(
            f"{name}*: its {', '.join(hooks)} {'is' if len(hooks) == 1 else 'are'} not reached, as {by} answers first"
        )
    return lines
