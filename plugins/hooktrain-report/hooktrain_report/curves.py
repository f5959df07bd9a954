"""Curves of runs as inline SVG. This is the only module that needs matplotlib."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import matplotlib
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hooktrain import RunFiles

__all__ = ["COLOURS", "EVENTS", "Series", "as_svg", "draw_lines", "draw_timeline", "memory_of", "series_of"]

COLOURS = ("#1f6feb", "#d9480f", "#1a7f37", "#8250df", "#6b7280", "#b7791f", "#0e7490", "#be185d")
EVENTS = {
    "checkpoint": ("s", "#1a7f37"),
    "evaluation": ("o", "#0e7490"),
    "resume": (">", "#8250df"),
    "warning": ("v", "#b7791f"),
    "failure": ("X", "#c62828"),
}
"""Mark and colour of each kind of event that is drawn."""
_DASHES = ("-", "--", "-.", ":")
_SIZE = (4.2, 2.35)
"""Inches; about the width of a phone, where text would become too small otherwise."""
_WIDE = (8.6, 2.6)
_MARKED, _SMOOTHED, _MOST = 30, 60, 500
"""Points up to which each has a mark, from which on a mean is drawn, and that are drawn one by one at most."""


class Series(NamedTuple):
    """A line of a plot.

    Attributes:
        name: what it shows, for the legend.
        points: places and values, in order.
        run: number of the run that it belongs to.
    """

    name: str
    points: Sequence[tuple[float, float]]
    run: int = 0


def series_of(runs: Sequence[RunFiles], names: Sequence[str], metric: str) -> list[Series]:
    """Return a metric of each run over its steps; values that are not finite are left out."""
    return [
        Series(name, points, number)
        for number, (run, name) in enumerate(zip(runs, names, strict=True))
        if (points := [(line["step"], line[metric]) for line in run.metrics if _is_finite(line.get(metric))])
    ]


def memory_of(runs: Sequence[RunFiles], names: Sequence[str]) -> list[Series]:
    """Return the memory of each run's process, and the peak of its device, in GiB over steps."""
    found = []
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        for key in ("process", "device"):
            points = [
                (each["step"], each[key] / 2**30)
                for each in run.events
                if each.get("kind") == "memory" and _is_finite(each.get(key))
            ]
            if points:
                label = key if key == "process" else "device, peak"
                found.append(Series(label if len(runs) == 1 else f"{name}: {label}", points, number))
    return found


def draw_lines(series: Sequence[Series], marks: Sequence[tuple[float, str]] = (), by_run: bool = False) -> Figure:
    """Draw series over steps.

    Args:
        series: the lines.
        marks: steps and kinds of events, drawn at the lower edge.
        by_run: whether colours tell runs apart, and not series.
    """
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    drawn: dict[int, int] = {}
    for number, each in enumerate(series):
        colour = COLOURS[(each.run if by_run else number) % len(COLOURS)]
        dash = _DASHES[drawn.get(each.run, 0) % len(_DASHES) if by_run else number // len(COLOURS)]
        drawn[each.run] = drawn.get(each.run, 0) + 1
        _line(axes, each, colour, dash)
    for kind, (mark, colour) in EVENTS.items():
        steps = sorted({step for step, found in marks if found == kind})
        if steps:
            at = axes.get_xaxis_transform()
            axes.plot(
                steps, [0.03] * len(steps), mark, color=colour, markersize=4, transform=at, label=kind, clip_on=False
            )
    values = [value for each in series for _, value in each.points]
    if values and min(values) > 0 and max(values) / min(values) > 100:
        axes.set_yscale("log")
    _plain(axes)
    axes.set_xlabel("step", fontsize=8.5)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _short(value)))
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False, fontsize=8)
    return figure


def draw_timeline(runs: Sequence[RunFiles], names: Sequence[str]) -> Figure | None:
    """Draw the steps of runs over the time since each has begun, with its events; None where there are none."""
    noted = [(run, name) for run, name in zip(runs, names, strict=True) if len(run.events) > 1]
    if not noted:
        return None
    figure = Figure(figsize=_WIDE, layout="constrained")
    axes = figure.add_subplot()
    seconds = max(run.events[-1]["time"] - run.events[0]["time"] for run, _ in noted)
    unit, size = next(
        (unit, size)
        for unit, size in (("hours", 3600), ("minutes", 60), ("seconds", 1))
        if seconds >= 3 * size or size == 1
    )
    for run, name in noted:
        number = runs.index(run)
        began = run.events[0]["time"]
        points = [((each["time"] - began) / size, each["step"]) for each in run.events]
        label = name if len(runs) > 1 else "_steps"
        axes.plot(*zip(*points, strict=True), color=COLOURS[number % len(COLOURS)], linewidth=1.4, label=label)
        for kind, (mark, colour) in EVENTS.items():
            own = [point for point, each in zip(points, run.events, strict=True) if each.get("kind") == kind]
            if own:
                known = axes.get_legend_handles_labels()[1]
                label = f"_{kind}" if kind in known else kind
                axes.plot(*zip(*own, strict=True), mark, color=colour, markersize=5, label=label)
    _plain(axes)
    axes.set_xlabel(f"{unit} since the start", fontsize=8.5)
    axes.set_ylabel("step", fontsize=8.5)
    axes.yaxis.set_major_locator(ticker.MaxNLocator(4, integer=True))
    if axes.get_legend_handles_labels()[1]:
        figure.legend(loc="outside upper left", ncols=6, frameon=False, fontsize=8)
    return figure


def as_svg(figure: Figure, title: str) -> str:
    """Return a plot as an element of an HTML page, with its text as text and without a URL."""
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": title, "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)  # which an HTML page does without
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # no two elements of a page have the same
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)


def _line(axes: Axes, series: Series, colour: str, dash: str) -> None:
    """Draw a line: with marks where there are few points, and with a mean over them where there are many."""
    places, values = zip(*series.points, strict=True)
    if len(values) <= _MARKED:
        size = 2.5 if len(values) > 1 else 4
        axes.plot(places, values, dash, color=colour, marker="o", markersize=size, linewidth=1.4, label=series.name)
        return
    if len(values) < _SMOOTHED:
        axes.plot(places, values, dash, color=colour, linewidth=1.3, label=series.name)
        return
    buckets = _buckets(len(values), min(_MOST, len(values)))
    middle = [places[(begin + end - 1) // 2] for begin, end in buckets]
    if len(buckets) < len(values):
        low, high = ([choose(values[begin:end]) for begin, end in buckets] for choose in (min, max))
        axes.fill_between(middle, low, high, color=colour, alpha=0.18, linewidth=0)
    else:
        axes.plot(places, values, color=colour, linewidth=0.7, alpha=0.35)
    means = [sum(values[begin:end]) / (end - begin) for begin, end in buckets]
    axes.plot(middle, _smooth(means, max(2, len(means) // 40)), dash, color=colour, linewidth=1.6, label=series.name)


def _buckets(length: int, count: int) -> list[tuple[int, int]]:
    return [(length * number // count, length * (number + 1) // count) for number in range(count)]


def _smooth(values: Sequence[float], reach: int) -> list[float]:
    """The mean of each value and its neighbours on both sides, fewer at the ends."""
    found = []
    for number in range(len(values)):
        near = min(reach, number, len(values) - 1 - number)
        part = values[number - near : number + near + 1]
        found.append(sum(part) / len(part))
    return found


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#8c959f")
    axes.grid(visible=True, axis="y", color="#e5e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, color="#8c959f")
    axes.margins(x=0.02)


def _short(value: float) -> str:
    for size, unit in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1000 if unit == 'k' else size):g}{unit}"
    return f"{value:g}"


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
