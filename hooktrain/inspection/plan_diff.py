"""``hooktrain plan RECIPE --diff OTHER``: in what two plans are not the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape

from hooktrain.errors import HooktrainError
from hooktrain.inspection.hooks import who
from hooktrain.inspection.plan import read_plan
from hooktrain.inspection.terminal import columns, console, show
from hooktrain.recipe.flat_values import flat_values

__all__ = ["compare", "print_difference"]

_ABSENT = "-"


def compare(
    other: Path, facts: Mapping[str, Any], nproc: int, estimates: bool = True
) -> dict[str, dict[str, list[Any]]]:
    """Return the differences from another plan: by section and name, the values there and here.

    Args:
        other: a recipe file, a plan as ``hooktrain plan --json`` prints it, or the directory of a run, whose plugins
            are those that were active then.
        facts: the plan.
        nproc: ranks to plan for, where the other one is a recipe.
        estimates: whether to compare sizes of model, data and memory.

    Raises:
        HooktrainError: when ``other`` is none of these.
    """
    there = _read(other, nproc, estimates)
    found = {}
    for section, what in _SECTIONS.items():
        if section == "estimates" and not (estimates and "estimates" in there):
            continue
        if section == "order of hooks" and "hooks" not in there:
            continue
        before, now = what(there), what(facts)
        names = dict.fromkeys([*before, *now])
        changed = {
            name: [before.get(name, _ABSENT), now.get(name, _ABSENT)]
            for name in names
            if before.get(name, _ABSENT) != now.get(name, _ABSENT)
        }
        if changed:
            found[section] = changed
    return found


def _read(other: Path, nproc: int, estimates: bool) -> dict[str, Any]:
    if other.is_dir():
        recipe, manifest = other / "recipe.yaml", other / "plugins.json"
        if not recipe.is_file():
            raise HooktrainError(f"--diff: '{other}' is a folder without a recipe.yaml; give the directory of a run")
        made = read_plan(recipe, nproc=nproc, estimates=estimates)
        if manifest.is_file():
            then = json.loads(manifest.read_text(encoding="utf-8"))["plugins"]
            made["plugins"] = [{**record, "state": "active"} for record in then]
            del made["hooks"]  # those of the plugins that are installed now
        return made
    if other.suffix == ".json":
        try:
            made = json.loads(other.read_text(encoding="utf-8"))
        except (OSError, ValueError) as problem:
            raise HooktrainError(f"--diff: '{other}' cannot be read as a plan ({problem})") from problem
        if not isinstance(made, dict) or not {"recipe", "parts", "plugins"} <= set(made):
            raise HooktrainError(f"--diff: '{other}' is no plan; make one with `hooktrain plan RECIPE --json`")
        return made
    return read_plan(other, nproc=nproc, estimates=estimates)


def _values(facts: Mapping[str, Any]) -> dict[str, Any]:
    return dict(flat_values(json.loads(json.dumps(facts["recipe"], default=str))))


def _parts(facts: Mapping[str, Any]) -> dict[str, Any]:
    made = {}
    for kind, chosen in facts["parts"].items():
        for number, part in enumerate(chosen):
            wrapped = f", wrapped by {', '.join(part['wrapped_by'])}" if part["wrapped_by"] else ""
            made[kind if len(chosen) == 1 else f"{kind}[{number}]"] = f"{part['type']} from {part['plugin']}{wrapped}"
    return made


def _plugins(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        record["name"]: f"{record['distribution']} {record['version']}".strip()
        for record in facts["plugins"]
        if record["state"] == "active" and record.get("info", {}).get("in_manifest", True)  # a run's list has no others
    }


def _order(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {hook: who(found) for hook, found in facts["hooks"].items()}


def _estimates(facts: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(flat_values(facts.get("estimates", {})))
    return {name: value for name, value in made.items() if not name.endswith(("how", "notes"))}


_SECTIONS = {
    "values": _values,
    "parts": _parts,
    "plugins": _plugins,
    "order of hooks": _order,
    "estimates": _estimates,
}


def print_difference(found: Mapping[str, Mapping[str, list[Any]]]) -> None:
    """The result of :func:`compare` for people."""
    to = console()
    if not found:
        to.print("nothing is different")
    for number, (section, changed) in enumerate(found.items()):
        to.print(f"{chr(10) if number else ''}[bold]{section}[/]")
        table = columns("", "", "", "", header=False)
        for column in table.columns[1:]:
            column.no_wrap = False
        for name, (before, now) in changed.items():
            table.add_row(
                f"  {escape(name)}", f"[red]{escape(_text(before))}[/]", "->", f"[green]{escape(_text(now))}[/]"
            )
        show(to, table)


def _text(value: Any) -> str:
    return (
        f"{value:,}"
        if isinstance(value, int) and not isinstance(value, bool)
        else (value if isinstance(value, str) else json.dumps(value))
    )
