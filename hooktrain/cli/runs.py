"""``hooktrain runs``: a table of runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from hooktrain.cli.options import as_json, print_facts

__all__ = ["runs"]

_MOST = 5
"""Keys in which recipes differ that are listed without ``--diff``."""
_WHY = 80
"""Most characters of a reason in the table; ``hooktrain watch`` shows all of it."""


@click.command()
@click.argument("folders", nargs=-1, metavar="DIR...", type=click.Path(path_type=Path))
@click.option("--diff", is_flag=True, help="Show the values of each recipe that are not the same in all.")
@as_json
def runs(folders: tuple[Path, ...], diff: bool, as_json: bool) -> None:
    """List runs, how far each came, its loss, and why one ended.

    DIR is a run directory, or a folder with some in it; runs when omitted.
    """
    from hooktrain.runs.files import add_results
    from hooktrain.runs.table import runs_in

    given = folders or (Path("runs"),)
    print_facts(add_results(runs_in(given)), as_json, lambda found: _print(found, given, diff))


def _print(found: Sequence[Mapping[str, Any]], folders: Sequence[Path], diff: bool) -> None:
    from hooktrain.inspection.terminal import columns, console, show
    from hooktrain.training.run_record import local_time

    if not found:
        click.echo(f"no run has left a record in {', '.join(map(str, folders))}")
        return
    table = columns("run", "id", "state", "step", "hook", "started", "why")
    colours = {"ended": "green", "running": "cyan", "starting": "cyan"}
    for each in found:
        colour = colours.get(each["state"], "red")
        why = each["problem"] or each["why"] or (f"status {each['status']}" if each["status"] else "")
        why = why if len(why) <= _WHY else f"{why[: _WHY - 3].rstrip()}..."
        cells = [_plain(text) for text in (each["folder"], each["id"])]
        table.add_row(
            *cells,
            f"[{colour}]{_plain(each['state'])}[/]",
            _step(each),
            *map(_plain, (each["hook"], local_time(each["started"]), why)),
        )
    show(console(), table)
    if not any(each["metrics"] or each["differs"] for each in found):
        return
    click.echo()
    table = columns("run", "loss", "lowest")
    for each in found:
        table.add_row(*map(_plain, (each["folder"], _loss(each), _best(each))))
    show(console(), table)
    keys = list(dict.fromkeys(key for each in found for key in each["differs"]))
    if keys and not diff:
        more = f", and {len(keys) - _MOST} more" if len(keys) > _MOST else ""
        click.echo(f"\nrecipes differ in {', '.join(keys[:_MOST])}{more}; --diff shows the values")
    for each in found if diff else ():
        click.echo(f"\n{_clean(each['folder'])}")
        for key in keys:
            value = each["differs"].get(key)
            click.echo(f"  {_clean(key)}: {'none' if value is None else _clean(_value(value))}")


def _step(run: Mapping[str, Any]) -> str:
    """How far a run came; a run that is starting does not know its steps yet."""
    if run["steps"] is None and run["state"] == "running":
        return f"resuming {Path(run['resumed_from']).name}" if run["resumed_from"] else "starting"
    return f"{run['step']}" + ("" if run["steps"] is None else f"/{run['steps']}")


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


def _clean(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(_clean(text))
