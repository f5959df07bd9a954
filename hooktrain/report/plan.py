"""``hooktrain plan``: what a run of a recipe would consist of."""

from __future__ import annotations

from typing import Any

import attrs
import yaml
from rich.console import Console
from rich.markup import escape

from hooktrain.hookspecs import FACTORIES
from hooktrain.plugins import PluginHost
from hooktrain.recipe import Recipe
from hooktrain.report.hooks import implementations_of

__all__ = ["plan_of", "print_plan"]


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
            each["plugin"] + {"wraps": " (wraps)", "not reached": " (not reached)"}.get(each["role"], "")
            for each in found
        )
        console.print(f"  {hook:<24} {escape(who)}", soft_wrap=True)
    console.print("\n[bold]plugins[/]")
    for record in facts["plugins"]:
        why = f": {record['reason']}" if record["reason"] else ""
        name = f"{record['name']} ({record['distribution']} {record['version']})".replace(" )", ")")
        console.print(f"  {record['state']:<8} {escape(name + why)}", soft_wrap=True)
