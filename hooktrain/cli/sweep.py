"""``hooktrain sweep``: a run for each combination of some values, one after another."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hooktrain.cli.options import as_json, from_dialect, print_facts, recipe_options
from hooktrain.plugin.commands import plugin_commands

if TYPE_CHECKING:
    from hooktrain.runs.sweep import SweepRun

__all__ = ["sweep"]

_ENDED_BY_SIGNAL = (129, 130, 143)
"""Statuses of a run that a signal has ended: the sweep ends then as well."""


@click.command(short_help="Run a recipe for each combination of values.")
@recipe_options
@from_dialect
@click.option("--seeds", type=click.IntRange(1), metavar="N", help="Run each combination with N seeds.")
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="The folder of the run directories; the recipe's run_dir with '-sweep' when omitted.",
)  # fmt: skip
@click.option("--nproc", type=click.IntRange(1), default=1, show_default=True, help="Processes of each run.")
@as_json
def sweep(
    recipe: Path,
    overrides: tuple[str, ...],
    switches: tuple[str, ...],
    dialect: str | None,
    seeds: int | None,
    folder: Path | None,
    nproc: int,
    as_json: bool,
) -> None:
    """Run a recipe once for each combination of values, such as -o optimizer.lr=1e-5,2e-5.

    Started again with the same values, it skips runs that have ended, and resumes those that have saved a checkpoint.
    """
    from hooktrain.cli.convert import foreign_refused, read_own_or_translated
    from hooktrain.recipe.yaml_reader import apply_overrides
    from hooktrain.runs.sweep import combinations, split_values, summary

    raw = read_own_or_translated(recipe, dialect, switches)
    keys = [word.partition("=")[0] for word in overrides]
    if seeds and "seed" in keys:
        raise click.UsageError("--seeds and -o seed=... say the same; keep one")
    if twice := next((key for key in keys if keys.count(key) > 1), ""):
        raise click.UsageError(f"-o {twice} is given twice; write its values with commas, as in {twice}=1,2")
    first = apply_overrides(raw, [f"{key}={split_values(text)[0]}" for key, _, text in map(_parts, overrides)])
    with foreign_refused(recipe, dialect, switches):
        from hooktrain.training.load import load

        made, _ = load(first, switches=list(switches), source=str(recipe), name=recipe.stem)
    own = made.run_dir or Path("runs") / recipe.stem
    folder = folder or own.with_name(f"{own.name}-sweep")
    shared, runs = combinations(folder, overrides, range(made.seed, made.seed + (seeds or 0)))
    status = 0
    for number, run in enumerate(runs, 1):
        if run.is_complete:
            _say(f"run {number} of {len(runs)} has ended before: {run}", as_json)
            continue
        _say(f"run {number} of {len(runs)}: {run}", as_json)
        ended = _train(_words(recipe, dialect, switches, shared, run, first, nproc), as_json)
        if ended in _ENDED_BY_SIGNAL or ended < 0:
            _say("interrupted; the same command goes on from here", as_json)
            sys.exit(128 - ended if ended < 0 else ended)
        status = status or ended
    found: dict[str, Any] = {"folder": str(folder), "rows": summary(runs)}
    if report := _report(runs, folder):
        found["report"] = str(report)
    print_facts(found, as_json, _print)
    sys.exit(status)


def _parts(word: str) -> tuple[str, str, str]:
    return word.partition("=")


def _words(
    recipe: Path,
    dialect: str | None,
    switches: Sequence[str],
    shared: Sequence[str],
    run: SweepRun,
    raw: Mapping[str, Any],
    nproc: int,
) -> list[str]:
    from hooktrain.runs.sweep import checkpoint_words

    overrides = [*shared, *(f"{key}={value}" for key, value in run.values.items()), f"run_dir={run.folder}"]
    overrides += checkpoint_words(raw, run.folder)
    words = ["train", str(recipe), *(["--from", dialect] if dialect else []), "--nproc", str(nproc)]
    for flag, values in (("-o", overrides), ("-p", switches)):
        for value in values:
            words += [flag, value]
    return words


def _train(words: Sequence[str], quiet: bool) -> int:
    """Run a command in a process of its own, which is sent what signals this one gets; returns its status."""
    line = [sys.executable, "-m", "hooktrain", *words]
    process = subprocess.Popen(line, stdout=sys.stderr.fileno() if quiet else None)
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda got, frame: process.send_signal(got)) for number in numbers}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda got, frame: None)  # a terminal sends it to both
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(runs: Sequence[SweepRun], folder: Path) -> Path | None:
    """Write one report of all runs, where the command for it is installed; returns its path."""
    folders = [str(run.folder) for run in runs if run.folder.is_dir()]
    if "report" not in plugin_commands() or not folders:
        return None
    path = folder / "report.html"
    line = [sys.executable, "-m", "hooktrain", "report", *folders, "-o", str(path)]
    made = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if made.returncode:
        click.echo(f"sweep: the report cannot be made: {made.stdout.strip()}", err=True)
        return None
    return path


def _print(found: Mapping[str, Any]) -> None:
    from rich.markup import escape

    from hooktrain.inspection.terminal import columns, console, show

    rows = found["rows"]
    names = list(dict.fromkeys(name for row in rows for name in row["losses"]))
    keys = list(dict.fromkeys(key for row in rows for key in row["values"]))
    table = columns(*keys, "ended", *names, "run")
    for row in rows:
        losses = (_loss(row["losses"].get(name)) for name in names)
        values = (row["values"].get(key, "") for key in keys)
        ended = f"{row['ended']} of {len(row['folders'])}"
        unlike = sorted({state for state in row["states"] if state != "ended"})
        where = row["folders"][0] if len(row["folders"]) == 1 else f"{row['folders'][0]}, ..."
        table.add_row(*map(escape, (*values, ", ".join([ended, *unlike]), *losses, where)))
    show(console(), table)
    if "report" in found:
        click.echo(f"report: {found['report']}")


def _loss(found: Sequence[float | None] | None) -> str:
    if found is None or found[0] is None:
        return ""
    return f"{found[0]:.4f}" if found[1] is None else f"{found[0]:.4f} ± {found[1]:.4f}"


def _say(text: str, quiet: bool) -> None:
    click.echo(f"sweep: {text}", err=quiet)
