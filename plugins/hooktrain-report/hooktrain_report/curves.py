"""Curves of runs as inline SVG. This is the only module that needs matplotlib."""

from __future__ import annotations

import io
import itertools
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
from hooktrain_report.html import COLOURS

__all__ = ["EVENTS", "Series", "as_svg", "draw_lines", "draw_timeline", "memory_of", "series_of"]

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

_WIDEST = 6
"""Characters of a number beside an axis, from which on it may be written with an exponent."""


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


def draw_lines(
    series: Sequence[Series], marks: Sequence[tuple[float, str]] = (), by_run: bool = False, scale: str = ""
) -> Figure:
    """Draw series over steps.

    Args:
        series: the lines.
        marks: steps and kinds of events, drawn at the lower edge.
        by_run: whether colours tell runs apart, and not series.
        scale: ``log`` where values that lie far apart are drawn in logarithmic scale, ``zero`` where it begins at 0.
    """
    figure = Figure(figsize=_SIZE)
    axes = figure.add_axes((0.155, 0.19, 0.825, 0.77))
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
    if scale == "log" and min(values) > 0 and max(values) / min(values) > 100:
        axes.set_yscale("log")
    else:
        axes.yaxis.set_major_locator(ticker.MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _short(value)))
        if min(values) == max(values) and scale != "zero":
            axes.set_yticks([values[0]])  # not five places around it, with digits that say nothing
    if scale == "zero":
        axes.set_ylim(0, max(values) * 1.1 or 1)
    _plain(axes)
    axes.set_xlabel("step", fontsize=8.5)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _short(value)))
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        _legend(figure, axes, handles, labels, columns=3 if max(map(len, labels)) <= 12 else 2)
    return figure


def draw_timeline(runs: Sequence[RunFiles], names: Sequence[str]) -> Figure | None:
    """Draw the steps of runs over the time since each has begun, with its events; None where there are none."""
    noted = [
        (run, name, colour)
        for run, name, colour in zip(runs, names, itertools.cycle(COLOURS), strict=False)
        if len(run.events) > 1
    ]
    if not noted:
        return None
    figure = Figure(figsize=_WIDE)
    axes = figure.add_axes((0.075, 0.18, 0.91, 0.79))
    seconds = max(run.events[-1]["time"] - run.events[0]["time"] for run, *_ in noted)
    unit, size = next(
        (unit, size)
        for unit, size in (("hours", 3600), ("minutes", 60), ("seconds", 1))
        if seconds >= 3 * size or size == 1
    )
    marked: dict[str, list[tuple[float, float]]] = {}
    for run, name, colour in noted:
        began = run.events[0]["time"]
        points = [((each["time"] - began) / size, each["step"]) for each in run.events]
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.4, label=name if len(runs) > 1 else "_steps")
        for point, each in zip(points, run.events, strict=True):
            marked.setdefault(each.get("kind", ""), []).append(point)
    for kind, (mark, colour) in EVENTS.items():
        if kind in marked:
            axes.plot(*zip(*marked[kind], strict=True), mark, color=colour, markersize=5, label=kind)
    _plain(axes)
    axes.set_xlabel(f"{unit} since the start", fontsize=8.5)
    axes.set_ylabel("step", fontsize=8.5)
    axes.yaxis.set_major_locator(ticker.MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        _legend(figure, axes, handles, labels, columns=6)
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


def _legend(figure: Figure, axes: Axes, handles: Sequence[Any], labels: Sequence[str], columns: int) -> None:
    """Put the legend above the axes, which become smaller; a layout engine would take most of a report's time."""
    left, bottom, width, height = axes.get_position().bounds
    taken = 0.19 * math.ceil(len(labels) / columns) / figure.get_size_inches()[1]
    axes.set_position((left, bottom, width, height - taken))
    figure.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=(left - 0.02, 1.01),
        ncols=columns,
        frameon=False,
        fontsize=8,
        borderaxespad=0,
        columnspacing=1.2,
        handlelength=1.6,
    )


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
    plain = f"{value:.6g}"
    if len(plain) <= _WIDEST:
        return plain
    digits, exponent = f"{value:.5e}".split("e")
    return min(plain, f"{float(digits):g}e{int(exponent)}", key=len)


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
