"""The command ``hooktrain bench``, which imports nothing heavy before it measures something."""

from __future__ import annotations

import contextlib
import datetime
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from hooktrain.cli.options import as_json, host_of, plugin_switches

if TYPE_CHECKING:
    from rich.console import Console

    from hooktrain.bench.results import Line

__all__ = ["RESULTS", "bench"]

RESULTS = Path("runs") / "bench"
"""Default folder for results; each measurement makes a folder in it."""
_PLACES = (RESULTS, Path("benchmarks") / "results")


class _Bench(click.Command):
    """``bench SUITE``, with the subcommand ``bench plugin NAME``."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args[:1] == ["plugin"]:
            return plugin.make_context(f"{info_name} plugin", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


_out = click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"Folder for the results.  [default: {RESULTS}/<time>]",
)


@click.command(cls=_Bench, short_help="Measure benchmark suites of plugins.")
@click.argument("suites", nargs=-1, metavar="[SUITE[:CASE]]...")
@click.option("--quick", is_flag=True, help="Few and short runs, only to show that everything works.")
@click.option("--rounds", type=click.IntRange(1), help="Rounds; in each, every variant runs twice.  [default: 5]")
@click.option("--threads", type=click.IntRange(1), help="Cores to use.  [default: all that this process may use]")
@_out
@as_json
@click.option("--compare", nargs=2, metavar="A B", help="Compare two results: files, folders, or commits.")
@click.option(
    "--baseline", metavar="FILE", help="Exit with status 1 if something is worse than in these results, beyond noise."
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="How much worse, beyond noise, is no regression.",
)
@click.option("--set", "options", multiple=True, metavar="KEY=VALUE", help="Set an option of a suite.")
@click.option(
    "--envs",
    type=click.Path(path_type=Path),
    help="Folder of peers' environments.  [default: ~/.cache/hooktrain/benchmarks]",
)
@click.option("--timeout", type=float, default=1800, show_default=True, help="Seconds after which a process is killed.")
@plugin_switches
def bench(
    suites: tuple[str, ...],
    quick: bool,
    rounds: int | None,
    threads: int | None,
    out: Path | None,
    as_json: bool,
    compare: tuple[str, str] | None,
    baseline: str | None,
    tolerance: float,
    options: tuple[str, ...],
    envs: Path | None,
    timeout: float,
    switches: tuple[str, ...],
) -> None:
    """Measure benchmark suites that plugins contribute; without a suite, list them.

    `hooktrain bench plugin NAME [RECIPE]` measures what an installed plugin costs.

    The exit status is 1 if a variant ends with an error, or if --baseline finds a regression. A failed target does not
    change it.
    """
    from hooktrain.bench.results import find

    if suites and compare is not None:
        raise click.UsageError(
            "--compare: given suites, expected two results only; to measure suites and compare them, use --baseline"
        )
    if baseline is not None and not suites:
        raise click.UsageError(
            "--baseline: given no suites, expected some to measure; to compare two results, use --compare A B"
        )
    if compare is not None:
        before, after = (find(word, _PLACES) for word in compare)
        _compare(before, after, tolerance, as_json)
        return
    earlier = find(baseline, _PLACES) if baseline is not None else None  # before anything is measured
    known = _known(switches)
    if not suites:
        _list(known, as_json)
        return
    from hooktrain.bench.runner import Settings, select

    chosen = select(suites, known)
    if earlier is not None:
        _require_common(earlier, chosen)
    settings = Settings(
        quick=quick,
        rounds=rounds,
        threads=threads,
        timeout=timeout,
        options=_pairs(options),
        **({"envs": envs} if envs else {}),
    )
    lines = [line for line in measure(chosen, settings, out, as_json) if "skipped" not in line]
    worse = _compare(earlier, lines, tolerance, None if as_json else False) if earlier is not None and lines else []
    for sentence in worse:
        _say(f"regression: {sentence}")
    if worse or any(
        "error" in variant and "not_installed" not in variant for line in lines for variant in line["variants"].values()
    ):
        sys.exit(1)


@click.command()
@click.argument("name")
@click.argument("recipe", required=False, type=click.Path(path_type=Path))
@click.option("--rounds", type=click.IntRange(1), help="Rounds; in each, both variants run twice.  [default: 5]")
@click.option("--quick", is_flag=True, help="One short round, only to show that it works.")
@click.option(
    "--steps", type=click.IntRange(2), help="Optimizer steps of a run.  [default: 20; 200 of the tiny recipe]"
)
@click.option("--threads", type=click.IntRange(1), help="Cores to use.  [default: all that this process may use]")
@click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change the recipe, in both variants.")
@click.option(
    "--settings", multiple=True, metavar="KEY=VALUE", help="Change the recipe in the variant with the plugin alone."
)
@plugin_switches
@_out
@as_json
def plugin(
    name: str,
    recipe: Path | None,
    rounds: int | None,
    quick: bool,
    steps: int | None,
    threads: int | None,
    overrides: tuple[str, ...],
    settings: tuple[str, ...],
    switches: tuple[str, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure what a plugin costs and changes: the same recipe with it and without it.

    Without RECIPE, a tiny recipe runs whose steps take milliseconds. A plugin that a run uses only with settings of its
    own gets them by --settings: `hooktrain bench plugin ema --settings ema.decay=0.99`.
    """
    from hooktrain.bench.plugin_cost import measure_plugin, print_report
    from hooktrain.bench.runner import Settings

    with _ended_by_a_signal():
        line = measure_plugin(
            name,
            recipe,
            Settings(quick=quick, rounds=rounds, threads=threads),
            steps=steps,
            overrides=overrides,
            own=settings,
            switches=switches,
            out=out,
            say=_say,
        )
    if as_json:
        click.echo(json.dumps(line, default=str))
    else:
        print_report(line, _console())
    if "error" in line["variants"]["with"]:
        sys.exit(1)


def measure(chosen: Any, settings: Any, out: Path | None, as_json: bool) -> list[Line]:
    """Run suites, print each finished case, and draw the plots and the page at the end."""
    from hooktrain.bench.runner import run_suites
    from hooktrain.bench.tables import print_line

    folder = out or RESULTS / datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    console = _console()
    finished: list[Line] = []

    def done(line: Line) -> None:
        finished.append(line)
        if not as_json:
            print_line(line, console)

    with _ended_by_a_signal():
        try:
            lines = run_suites(chosen, settings, out=folder, say=_say, done=done)
        except BaseException:
            if finished:  # what is measured already is kept and shown
                _draw(folder)
            raise
    if as_json:
        for line in lines:
            click.echo(json.dumps(line, default=str))
    if any("skipped" not in line for line in lines):
        _draw(folder)
    return lines


@contextlib.contextmanager
def _ended_by_a_signal() -> Iterator[None]:
    """Exit on SIGTERM, which kills the started processes as well."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _draw(folder: Path) -> None:
    from hooktrain.bench.results import read

    try:
        from hooktrain.bench.page import write_page
    except ModuleNotFoundError as problem:
        if problem.name != "matplotlib":
            raise
        _say(f"written to {folder}; for plots install matplotlib: pip install 'hooktrain[bench]'")
        return
    _say(f"written to {write_page(read(folder), folder)}")


def _known(switches: tuple[str, ...]) -> Any:
    from hooktrain.bench.runner import gather
    from hooktrain.plugin.checking import check_installed

    host = host_of(switches)
    check_installed(host)
    return gather(host)


def _list(known: Any, as_json: bool) -> None:
    rows = [{"name": name, "plugin": plugin, "summary": suite.summary} for name, (suite, plugin) in known.items()]
    if as_json:
        click.echo(json.dumps(rows))
    elif rows:
        from hooktrain.bench.tables import print_suites

        print_suites(rows, _console())
    else:
        click.echo("no plugin contributes a suite; `hooktrain guide benchmark-suites` shows how to write one")


def _pairs(words: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign:
            raise click.UsageError(f"--set: given '{word}', expected KEY=VALUE")
        pairs[name] = value
    return pairs


def _require_common(earlier: list[Line], chosen: Any) -> None:
    """Refuse a baseline that has nothing in common with what is to be measured, before it is."""
    from hooktrain.bench.errors import BenchError

    there = [f"{line['suite']}:{line['case']}" for line in earlier]
    for suite, cases in chosen:
        if any(line["suite"] == suite.name and (cases is None or line["case"] in cases) for line in earlier):
            return
    raise BenchError(
        f"--baseline: given results of {', '.join(there) or 'nothing'}, expected a case that is to be measured"
    )


def _compare(before: list[Line], after: list[Line], tolerance: float, as_json: bool | None) -> list[str]:
    """Print the changes between two results, unless ``as_json`` is None; return a sentence for each regression."""
    import attrs

    from hooktrain.bench.regressions import broken, changes, machine_differences
    from hooktrain.bench.tables import print_changes

    found = changes(before, after, tolerance)
    lines, gone = [attrs.asdict(change) for change in found], broken(before, after)
    notes = [*machine_differences(before, after), *gone]
    if as_json:
        click.echo(json.dumps({"changes": lines, "notes": notes}))
    elif as_json is not None:
        print_changes(lines, notes, _console())
    where = "{0.suite}: {0.case}, {0.variant}: {0.metric} {0.figure.value:.2f} times"
    return [*(where.format(change) for change in found if change.regression), *gone]


def _console() -> Console:
    from hooktrain.inspection.terminal import console

    return console()


def _say(message: str) -> None:
    click.echo(message, err=True)
