"""``hooktrain watch``: a run in the terminal, from another shell."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hooktrain.runs.watch import Snapshot

__all__ = ["watch"]

_EARLIER = 10
"""Log lines from before the watching that are printed where there is no terminal."""


@click.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--interval", type=click.FloatRange(0.1), default=1.0, show_default=True, help="Seconds between two looks."
)
def watch(run: Path, interval: float) -> None:
    """Show a run as it goes on, until it ends.

    RUN is its directory. Its files are read, and the run does not notice. The status is 1 where the run fails or is
    killed.
    """
    from hooktrain.inspection.terminal import is_terminal
    from hooktrain.runs.watch import snapshots

    found = snapshots(run, lambda: time.sleep(interval))
    try:
        last = _live(found) if is_terminal() else _lines(found)
    except KeyboardInterrupt:
        click.echo("stopped watching; the run continues")
        return
    click.echo(f"{run}: {last.outcome()}")
    if last.has_failed:
        sys.exit(1)


def _lines(found: Iterator[Snapshot]) -> Snapshot:
    """Print a line for each new log line, and a few of those that are there already; returns the last snapshot."""
    from hooktrain.runs.watch import figures_of

    earlier: int | None = None
    for snapshot in found:
        steps = "" if snapshot.facts["steps"] is None else f"/{snapshot.facts['steps']}"
        new = snapshot.new
        if earlier is None:
            earlier = max(0, len(new) - _EARLIER)
            new = new[earlier:]
            if earlier:
                click.echo(f"{earlier:,} earlier lines are in metrics.jsonl")
        for line in new:
            click.echo(f"step {line['step']:g}{steps}  {'  '.join(figures_of(line))}")
    return snapshot


def _live(found: Iterator[Snapshot]) -> Snapshot:
    """Show the newest snapshot in place of the one before; returns the last one."""
    from rich.live import Live

    from hooktrain.inspection.terminal import console

    with Live(console=console(), auto_refresh=False) as live:
        for snapshot in found:
            live.update(_shown(snapshot, live.console.width), refresh=True)
    return snapshot


def _shown(snapshot: Snapshot, width: int) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from hooktrain.builtins.console import clock
    from hooktrain.runs.watch import figures_of, sparkline, time_left
    from hooktrain.training.run_record import local_time

    facts, last = snapshot.facts, snapshot.last
    ranks = f"{facts['world_size']} rank{'s' if facts['world_size'] != 1 else ''}"
    head = Text.assemble(
        (facts["name"], "bold"),
        f"  {facts['id']}  ",
        (facts["state"], {"running": "cyan", "ended": "green"}.get(facts["state"], "red")),
        f"  {ranks} on {facts['host']}, started {local_time(facts['started'])}",
    )
    steps, left = facts["steps"], time_left(snapshot)
    step = f"step {facts['step']}" + ("" if steps is None else f"/{steps}")
    step += f"  {clock(left)} left" if left is not None and not snapshot.is_over else ""
    shown: list[RenderableType] = [head, Text(step)]
    if steps:
        done = round(width * min(1, facts["step"] / steps))
        shown.append(Text.assemble(("━" * done, "green"), ("━" * (width - done), "dim")))
    usual = {name: value for name, value in last.items() if not name.startswith("eval/")}
    shown.append(Text("  ".join(figures_of(usual))))
    if len(snapshot.losses) > 1:
        shown.append(Text(f"loss {sparkline(snapshot.losses, width - 5)}"))
    for name, (value, at) in snapshot.best.items():
        if name.startswith("eval/") and isinstance(last[name], (int, float)):
            shown.append(Text(f"{name} {last[name]:.4f}, best {value:.4f} at step {at}"))
    return Group(*shown)
