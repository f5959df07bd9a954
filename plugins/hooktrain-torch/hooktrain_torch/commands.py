"""Commands that ``hooktrain-torch`` adds to the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import click

if TYPE_CHECKING:
    from hooktrain import PluginHost

__all__ = ["verify_resume"]


@click.command("verify-resume")
@click.option("-p", "switches", multiple=True, metavar="NAME", help="Load a plugin; no:NAME blocks one, no:* all.")
@click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Set a value, such as optimizer.lr=1e-4.")
@click.option("--steps", type=click.IntRange(2), default=4, show_default=True, help="Steps of the uninterrupted run.")
@click.option("--nproc", type=click.IntRange(1), default=1, show_default=True, help="Processes of each run.")
@click.option("--keep", type=click.Path(path_type=Path), metavar="FOLDER", help="Keep the three runs' files here.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.argument("recipe", type=click.Path(path_type=Path))
def verify_resume(
    recipe: Path,
    overrides: tuple[str, ...],
    switches: tuple[str, ...],
    steps: int,
    nproc: int,
    keep: Path | None,
    as_json: bool,
) -> None:
    """Run a recipe without interruption and through a checkpoint half-way, and compare.

    Batches, logged numbers, weights, optimizer, schedule, random states, counters and the states of plugins must be
    equal bit by bit. The status is 1 when they are not: then some plugin keeps a state that it does not save.
    """
    from rich.console import Console
    from rich.markup import escape

    from hooktrain import load
    from hooktrain_torch.resume_comparison import compare_resumed_run

    _, host = load(recipe, overrides=list(overrides), switches=list(switches))  # reports errors in the recipe, once
    words = [str(recipe)]
    for flag, values in (("-o", overrides), ("-p", switches)):
        for value in values:
            words += [flag, value]
    findings = compare_resumed_run(words, steps, nproc, keep, say=lambda message: click.echo(message, err=True))
    failed = any(finding.differs for finding in findings)
    if as_json:
        click.echo(json.dumps([attrs.asdict(finding) for finding in findings], indent=2))
    else:
        console = Console(highlight=False, soft_wrap=True)
        half = steps // 2
        console.print(f"{steps} steps without interruption, and {half} + {steps - half} through a checkpoint:")
        for finding in findings:
            result = f"[red]differ: {escape(finding.differs)}[/]" if finding.differs else f"equal ({finding.count:,})"
            console.print(f"  {finding.what:<33}{result}")
        if failed:
            stateless = ", ".join(_without_state(host)) or "none"
            console.print(f"Active plugins that save no state: {stateless}")
    if failed:
        sys.exit(1)


def _without_state(host: PluginHost) -> list[str]:
    """Return the plugins that have event or loop hooks and save no state."""
    running = ("on_", "run_", "compute_", "count_")
    return [
        record["name"]
        for record in host.manifest()
        if record["distribution"] != "hooktrain"
        and any(hook.startswith(running) for hook in record["hooks"])
        and "collect_state" not in record["hooks"]
    ]
