"""``hooktrain lr-find``: a range test of learning rates, as text and as a plot."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from hooktrain.cli.options import as_json, from_dialect, print_facts, recipe_options
from hooktrain.errors import HooktrainError

__all__ = ["lr_find"]

_WIDTH, _HEIGHT = 64, 12
"""Columns and rows of the plot as text."""


@click.command("lr-find", short_help="Propose a learning rate.")
@recipe_options
@from_dialect
@click.option("--min", "least", type=float, default=1e-7, show_default=True, help="Learning rate of the first step.")
@click.option("--max", "most", type=float, default=1.0, show_default=True, help="Learning rate of the last step.")
@click.option("--steps", type=click.IntRange(10), default=100, show_default=True, help="Optimizer steps.")
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Write a plot too: an .svg or a .png, for which matplotlib is needed.",
)  # fmt: skip
@as_json
def lr_find(
    recipe: Path,
    overrides: tuple[str, ...],
    switches: tuple[str, ...],
    dialect: str | None,
    least: float,
    most: float,
    steps: int,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Train a few steps with a learning rate that grows, show the losses, and propose a rate.

    Nothing is kept: the run has a folder that is removed, saves nothing and evaluates nothing.
    """
    from hooktrain.cli.convert import foreign_refused, read_own_or_translated
    from hooktrain.cli.startup import collect_rarely, has_console, sleep_while_waiting
    from hooktrain.recipe.yaml_reader import apply_overrides

    if plot is not None:
        _require_plot(plot)
    sleep_while_waiting()
    raw = apply_overrides(read_own_or_translated(recipe, dialect, switches), overrides)
    if as_json and has_console(raw, switches):
        raw = apply_overrides(raw, ["console.enabled=false"])
    with collect_rarely(), foreign_refused(recipe, dialect, switches):
        from hooktrain.training.load import load

        _, host = load(raw, switches=list(switches), source=str(recipe), name=recipe.stem)
    from hooktrain.training.lr_find import find_learning_rate

    found = find_learning_rate(host, least=least, most=most, steps=steps, name=recipe.stem).as_dict()
    if plot is not None:
        _draw(found, plot)
        found["plot"] = str(plot)
    print_facts(found, as_json, _print)


def _print(found: Mapping[str, Any]) -> None:
    for line in text_plot(found["rates"], found["smoothed"]):
        click.echo(line)
    if found["proposal"] is None:
        click.echo(f"no proposal: {found['note']}")
    else:
        click.echo(f"proposal: optimizer.lr: {found['proposal']:g}, {found['note']}")
    if "plot" in found:
        click.echo(f"plot: {found['plot']}")


def text_plot(rates: Sequence[float], losses: Sequence[float]) -> Iterator[str]:
    """Yield the lines of a plot of losses over the logarithm of rates."""
    low, high = min(losses), min(max(losses), 2 * losses[0] if losses[0] > 0 else math.inf)
    high = high if high > low else low + 1.0
    first, last = math.log(rates[0]), math.log(rates[-1])
    columns: list[list[float]] = [[] for _ in range(_WIDTH)]
    for rate, loss in zip(rates, losses, strict=True):
        at = 0 if last == first else round((math.log(rate) - first) / (last - first) * (_WIDTH - 1))
        columns[at].append(loss)
    rows = [[" "] * _WIDTH for _ in range(_HEIGHT)]
    for column, found in enumerate(columns):
        for loss in found:
            height = min(1.0, (loss - low) / (high - low))
            rows[round((1 - height) * (_HEIGHT - 1))][column] = "•"
    for number, row in enumerate(rows):
        value = {0: f"{high:.4g}", _HEIGHT - 1: f"{low:.4g}"}.get(number, "")
        yield f"{value:>9} │{''.join(row).rstrip()}"
    yield f"{'loss':>9} └{'─' * _WIDTH}"
    yield f"{'':>11}{rates[0]:<10.1e}{'learning rate':^{_WIDTH - 20}}{rates[-1]:>10.1e}"


def _require_plot(path: Path) -> None:
    if path.suffix not in (".svg", ".png"):
        raise HooktrainError(f"lr-find: --plot is '{path}', expected a file that ends in .svg or .png")
    if importlib.util.find_spec("matplotlib") is None:
        raise HooktrainError("lr-find: --plot needs matplotlib; pip install matplotlib, or leave it out")


def _draw(found: Mapping[str, Any], path: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.semilogx(found["rates"], found["losses"], color="#9aa5b1", linewidth=0.8, label="each step")
    axes.semilogx(found["rates"], found["smoothed"], color="#1f6feb", label="smoothed")
    start = found["smoothed"][0]
    if start > 0:
        axes.set_ylim(top=min(max(found["losses"]), 2 * start))
    if found["proposal"] is not None:
        axes.axvline(found["proposal"], color="#d9480f", linestyle="--", label=f"proposal {found['proposal']:g}")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.legend()
    with matplotlib.rc_context({"svg.hashsalt": "hooktrain"}):
        figure.savefig(path)
