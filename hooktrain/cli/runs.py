"""``hooktrain runs``: a table of runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from hooktrain.cli.options import as_json, print_facts

__all__ = ["runs"]

_MOST = 12
"""Values of a recipe that are listed."""


@click.command()
@click.argument("folders", nargs=-1, metavar="DIR...", type=click.Path(path_type=Path))
@as_json
def runs(folders: tuple[Path, ...], as_json: bool) -> None:
    """List runs, how far each came, its loss, and why one ended; then what their recipes differ in.

    DIR is a run directory, or a folder with some in it; runs when omitted.
    """
    from hooktrain.runs.files import add_results
    from hooktrain.runs.table import runs_in

    given = folders or (Path("runs"),)
    print_facts(add_results(runs_in(given)), as_json, lambda found: _print(found, given))


def _print(found: Sequence[Mapping[str, Any]], folders: Sequence[Path]) -> None:
    from hooktrain.inspection.terminal import columns, console, show
    from hooktrain.training.run_record import local_time

    if not found:
        click.echo(f"no run has left a record in {', '.join(map(str, folders))}")
        return
    table = columns("run", "id", "state", "step", "hook", "started", "why")
    colours = {"ended": "green", "running": "cyan"}
    for each in found:
        colour = colours.get(each["state"], "red")
        step = f"{each['step']}" + ("" if each["steps"] is None else f"/{each['steps']}")
        why = each["problem"] or each["why"] or (f"status {each['status']}" if each["status"] else "")
        cells = [_plain(text) for text in (each["folder"], each["id"])]
        table.add_row(
            *cells,
            f"[{colour}]{_plain(each['state'])}[/]",
            step,
            *map(_plain, (each["hook"], local_time(each["started"]), why)),
        )
    show(console(), table)
    if not any(each["metrics"] or each["differs"] for each in found):
        return
    click.echo()
    differ = any(each["differs"] for each in found)
    table = columns("run", "loss", "lowest", *(["recipes differ in"] if differ else []))
    for each in found:
        values = [f"{path}={_value(value)}" for path, value in each["differs"].items()]
        more = f", and {len(values) - _MOST} more, which --json lists" if len(values) > _MOST else ""
        cells = [each["folder"], _loss(each), _best(each), *([", ".join(values[:_MOST]) + more] if differ else [])]
        table.add_row(*map(_plain, cells))
    show(console(), table)


def _loss(run: Mapping[str, Any]) -> str:
    loss = run["metrics"].get("loss")
    return "" if loss is None else f"{loss:.4f}" if isinstance(loss, (int, float)) else str(loss)


def _best(run: Mapping[str, Any]) -> str:
    """The lowest loss of each evaluation set, or of the training where there is none."""
    sets = {name: best for name, best in run["best"].items() if name != "loss"}
    named = {name.removeprefix("eval/").removesuffix("/loss"): best for name, best in (sets or run["best"]).items()}
    return ", ".join(f"{name} {value:.4f} at {step}" for name, (value, step) in named.items())


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape("".join(character if character.isprintable() else " " for character in text))
