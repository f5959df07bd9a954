"""Plots of results. This is the only module that needs matplotlib: ``pip install 'hooktrain[bench]'``."""

from __future__ import annotations

import io
import math
import re
import statistics
from collections.abc import Sequence
from typing import Any

import matplotlib

from hooktrain.bench.results import Line, values
from hooktrain.bench.tables import COLOURS, HEX, name_of, number

matplotlib.use("Agg")  # no window, regardless of the user's settings

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["as_png", "as_svg", "draw"]

_OTHER = "#4a5568"
_LINES = ("#1f6feb", "#d9480f", "#1a7f37", "#8250df", "#6b7280", "#b7791f", "#0e7490", "#be185d")
_MARKS = "osD^vPX*"
_WIDTH = 9.0
"""Inches."""
_ROW = 0.36
"""Inches of a line of the plot of ratios."""


def draw(lines: Sequence[Line]) -> list[Figure]:
    """Return the plots of one suite: its metrics over a parameter, or the ratios of its comparisons."""
    over = lines[0].get("over")
    if over and len({line["parameters"].get(over) for line in lines}) > 1:
        made = _over(lines, over)
        lines = [line for line in lines if over not in line["parameters"]]  # cases of another kind
    else:
        made = []
    ratios = _ratios(lines) if lines else None
    return made if ratios is None else [*made, ratios]


def as_png(figure: Figure, dots: int = 150) -> bytes:
    """Return a plot as a PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dots)
    return stream.getvalue()


def as_svg(figure: Figure) -> str:
    """Return a plot as an element of an HTML page."""
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "hooktrain"}):  # the same plot has the same text
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    return re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)


# ----------------------------------------------------------------------------------------------------- ratios


def _ratios(lines: Sequence[Line]) -> Figure | None:
    """Plot a row for each comparison: the ratio with its interval, 1 as a line, and the target as a tick."""
    rows = [
        (line, each)
        for line in lines
        for each in line["comparisons"]
        if each["kind"] == "ratio" and each["figure"] is not None and (each["figure"][0] or 0) > 0
    ]
    if not rows:
        return None
    figure = Figure(figsize=(_WIDTH, 1.3 + _ROW * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for at, (line, each) in enumerate(rows):
        value, low, high = each["figure"]
        colour = HEX.get(COLOURS.get(each["verdict"], ""), _OTHER)
        if low is not None and low > 0 and high is not None:
            axes.plot([low, high], [at, at], color=colour, linewidth=2.2, solid_capstyle="butt")
        axes.plot(value, at, "o", color=colour, markersize=6, markerfacecolor="white" if each["noisy"] else colour)
        axes.annotate(_label(each), (1.01, at), xycoords=("axes fraction", "data"), va="center", fontsize=8)
        if each["limit"]:
            limit = float(each["limit"].split()[1])
            axes.plot([limit, limit], [at - 0.34, at + 0.34], color="black", linewidth=1.4)
        if line["case"] != rows[at - 1][0]["case"] and at:
            axes.axhline(at - 0.5, color="#d0d7de", linewidth=0.8)
    axes.axvline(1, color="#8c959f", linewidth=1, zorder=0)
    axes.set_yticks(range(len(rows)), [_name(line, each, len(lines) > 1) for line, each in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    _ratio_scale(axes, rows)
    axes.set_xlabel(
        "ratio to what it is compared with (95% interval; black: target; hollow: other programs were running)"
    )
    axes.xaxis.label.set_fontsize(8)
    axes.set_title(lines[0]["suite"], loc="left", fontsize=11, fontweight="bold")
    _plain(axes)
    return figure


def _name(line: Line, each: dict[str, Any], several: bool) -> str:
    name = name_of(each)
    better = next((metric["better"] for metric in line["metrics"] if metric["name"] == each["metric"]), None)
    arrow = {"lower": " ↓", "higher": " ↑"}.get(better or "", "")
    text = f"{name}, {each['metric']}{arrow}"
    return f"{line['case']}: {text}" if several else text


def _label(each: dict[str, Any]) -> str:
    value = each["figure"][0]
    return f"{value:.2f}  {each['verdict']}" if value < 100 else f"{value:.0f}  {each['verdict']}"


def _ratio_scale(axes: Axes, rows: Sequence[tuple[Line, dict[str, Any]]]) -> None:
    ends = [number for _, each in rows for number in each["figure"] if number and math.isfinite(number)] + [1.0]
    ends += [float(each["limit"].split()[1]) for _, each in rows if each["limit"]]
    low, high = min(ends), max(ends)
    if high / low > 4:
        axes.set_xscale("log")
        steps = [n * 10.0**power for power in range(-6, 7) for n in (1, 2, 5)]
        axes.xaxis.set_major_locator(ticker.FixedLocator([step for step in steps if low / 1.5 <= step <= high * 1.5]))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.set_xlim(low / 1.25, high * 1.25)
    else:
        room = max(0.05, (high - low) * 0.08)
        axes.set_xlim(low - room, high + room)
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))


# -------------------------------------------------------------------------------------------- over a parameter


def _over(lines: Sequence[Line], over: str) -> list[Figure]:
    """Plot each metric, with a line for each variant and the range of its runs."""
    made = []
    ordered = sorted((line for line in lines if over in line["parameters"]), key=lambda line: line["parameters"][over])
    for metric in ordered[0]["metrics"]:
        figure = Figure(figsize=(_WIDTH, 3.8), layout="constrained")
        axes = figure.add_subplot()
        variants = list(dict.fromkeys(variant for line in ordered for variant in line["variants"]))
        lowest: list[float] = []
        for at, variant in enumerate(variants):
            points = [(line["parameters"][over], values(line, variant, metric["name"])) for line in ordered]
            points = [(x, found) for x, found in points if found]
            if not points:
                continue
            places = [x for x, _ in points]
            medians = [statistics.median(found) for _, found in points]
            ranges = [
                [median - min(found) for (_, found), median in zip(points, medians, strict=True)],
                [max(found) - median for (_, found), median in zip(points, medians, strict=True)],
            ]
            lowest += [min(found) for _, found in points]
            colour = _LINES[at % len(_LINES)]
            axes.errorbar(
                places, medians, ranges, label=variant, color=colour, marker=_MARKS[at % 8], capsize=2, lw=1.6
            )
        if not lowest:
            continue
        _scales(axes, [line["parameters"][over] for line in ordered], lowest)
        unit = metric["unit"]
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _, unit=unit: number(value, unit)))
        axes.set_xlabel(over.replace("_", " "))
        axes.set_ylabel(metric["name"].replace("_", " "))
        axes.set_title(f"{lines[0]['suite']}: {metric['name']}", loc="left", fontsize=11, fontweight="bold")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
        _plain(axes)
        made.append(figure)
    return made


def _scales(axes: Axes, places: Sequence[float], lowest: Sequence[float]) -> None:
    positive = [place for place in places if place > 0]
    if positive and max(positive) / min(positive) >= 20:
        axes.set_xscale("symlog" if min(places) <= 0 else "log", **({"linthresh": 1} if min(places) <= 0 else {}))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.set_xticks(list(dict.fromkeys(places)), [f"{place:,}" for place in dict.fromkeys(places)])
    if min(lowest) > 0 and max(lowest) / min(lowest) > 20:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(visible=True, axis="x", color="#e5e7eb", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
