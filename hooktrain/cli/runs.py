"""``hooktrain runs``: a table of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from hooktrain.cli.options import as_json, print_facts

__all__ = ["runs"]


@click.command()
@click.argument("folders", nargs=-1, metavar="DIR...", type=click.Path(path_type=Path))
@as_json
def runs(folders: tuple[Path, ...], as_json: bool) -> None:
    """List runs, how far each came, and why one ended.

    DIR is a run directory, or a folder with some in it; runs when omitted.
    """
    from hooktrain.runs.table import runs_in

    given = folders or (Path("runs"),)
    print_facts(runs_in(given), as_json, lambda found: _print(found, given))


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


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape("".join(character if character.isprintable() else " " for character in text))
