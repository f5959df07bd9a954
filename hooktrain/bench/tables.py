"""Results as text, for terminals of 80 columns and more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hooktrain.bench.bootstrap import median_of
from hooktrain.bench.results import Line, values
from hooktrain.bench.verdicts import NOISY

__all__ = [
    "COLOURS",
    "HEX",
    "coloured",
    "figure_text",
    "label_of",
    "make_table",
    "median_text",
    "name_of",
    "notes_of",
    "number",
    "parameters_text",
    "print_changes",
    "print_line",
    "print_suites",
    "shown_metrics",
    "verdict_text",
]

COLOURS = {
    **dict.fromkeys(("passed", "better"), "green"),
    **dict.fromkeys(("failed", "worse", "error", "regression"), "red"),
    **dict.fromkeys(("undecided", "not installed"), "yellow"),
}
HEX = {"green": "#1a7f37", "red": "#c62828", "yellow": "#9a6700"}
"""The same colours in plots and on pages."""
_PARTS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9))


def number(value: float | None, unit: str) -> str:
    """Return a number with its unit in three or four digits, and in ms, µs, ns or GiB where that is readable."""
    if value is None:
        return "-"
    if unit == "s" and 0 < abs(value) < 1:
        name, size = next((part for part in _PARTS if abs(value) >= part[1]), _PARTS[-1])
        return f"{_digits(value / size)} {name}"
    if unit == "MiB" and abs(value) >= 1024:
        return f"{_digits(value / 1024)} GiB"
    return f"{_digits(value)} {unit}".rstrip()


def _digits(value: float) -> str:
    size = abs(value)
    if value == round(value) and size < 1e6:
        return f"{value:.0f}"
    if size >= 1e6 or size < 1e-3:
        return f"{value:.3g}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.{0 if size >= 100 else 1 if size >= 10 else 2}f}"


def figure_text(line: Mapping[str, Any]) -> str:
    """Return the figure of a comparison with its interval."""
    if line["figure"] is None:
        return "-"
    value, low, high = line["figure"]
    if line["kind"] == "ratio":
        return _times(value) + ("" if low is None or low == high else f" ({_times(low)} to {_times(high)})")
    text = number(value, line["unit"])
    return text + (
        "" if low is None or low == high else f" ({number(low, line['unit'])} to {number(high, line['unit'])})"
    )


def _times(value: float | None) -> str:
    if value is None:
        return "∞"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def shown_metrics(line: Line) -> list[dict[str, Any]]:
    """Return the metrics of which a case has numbers."""
    return [each for each in line["metrics"] if any(values(line, name, each["name"]) for name in line["variants"])]


def median_text(line: Line, variant: str, metric: Mapping[str, Any]) -> str:
    """Return the median of a variant's runs in a metric."""
    found = values(line, variant, metric["name"])
    return number(median_of(found, samples=1).value, metric["unit"]) if found else "-"


def parameters_text(line: Line) -> str:
    """Return a case's parameters."""
    return ", ".join(f"{name} {str(value)[:40]}" for name, value in line["parameters"].items())


def label_of(line: Line, variant: str) -> str:
    """Return a variant's name, marked if it is the baseline of others."""
    return variant + (" (baseline)" if variant == line["baseline"] and len(line["variants"]) > 1 else "")


def name_of(compared: Mapping[str, Any]) -> str:
    """Return the name of a target, or those of the variants that are compared."""
    own = compared["limit"] or not compared["to"]
    return f"{compared['name']}" if own else f"{compared['variant']} to {compared['to']}"


def verdict_text(compared: Mapping[str, Any]) -> str:
    """Return a verdict, with a question mark if the machine was busy."""
    return f"{compared['verdict']}{'?' if compared['noisy'] else ''}"


def coloured(compared: Mapping[str, Any]) -> Text:
    """Return a verdict in its colour."""
    return Text(verdict_text(compared), style=COLOURS.get(compared["verdict"], ""))


def make_table(fold: Sequence[str], right: Sequence[str] = (), fixed: Sequence[str] = ()) -> Table:
    """Return a table whose columns are folded, then some of numbers, then some of fixed width; nothing is cut."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in fold:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, overflow="fold", justify="right")
    for name in fixed:
        table.add_column(name, no_wrap=True)
    return table


def print_line(line: Line, console: Console) -> None:
    """Print a case's result: the variants' medians, the comparisons, and notes on them."""
    chosen = parameters_text(line)
    console.print()
    console.print(Text(f"{line['suite']}: {line['case']}", style="bold") + Text(f"  {chosen}" if chosen else ""))
    if line["about"]:
        console.print(Text(line["about"], style="dim"))
    shown = shown_metrics(line)
    table = make_table(["variant"], [metric["name"].replace("_", " ") for metric in shown])
    for variant in line["variants"]:
        table.add_row(label_of(line, variant), *(median_text(line, variant, metric) for metric in shown))
    console.print(table)
    for variant, facts in line["variants"].items():
        if "error" in facts:
            console.print(Text(f"{variant}: {facts['error']}", style="yellow" if facts.get("not_installed") else "red"))
    compared = line["comparisons"]
    if not compared:
        return
    table = make_table(["compared", "metric"], ["figure (95%)"], ["target", "verdict"])
    for each in compared:
        metric = each["metric"].replace("_", " ")
        table.add_row(name_of(each), metric, figure_text(each), each["limit"], coloured(each))
    console.print(table)
    for note in notes_of(compared):
        console.print(Text(note, style="dim"))
    _print_if_noisy(compared, console)


def _print_if_noisy(compared: Sequence[Mapping[str, Any]], console: Console) -> None:
    if any(each["noisy"] for each in compared):
        text = f"? other programs used more than {NOISY:.0%} of the processor time meanwhile"
        console.print(Text(text, style="yellow"))


def notes_of(compared: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the notes on comparisons; one that holds for several of them only once."""
    said: dict[str, list[str]] = {}
    for each in compared:
        for text in (each["why"], *each["notes"]):
            if text:
                said.setdefault(text, []).append(f"{each['name']}, {each['metric']}")
    return [f"{'; '.join(of) if len(of) < 3 else f'{len(of)} comparisons'}: {text}" for text, of in said.items()]


def print_suites(suites: Sequence[Mapping[str, str]], console: Console) -> None:
    """Print the suites."""
    table = make_table(["suite", "plugin", "measures"])
    for suite in suites:
        table.add_row(suite["name"], suite["plugin"], suite["summary"])
    console.print(table)


def print_changes(changes: Sequence[Mapping[str, Any]], notes: Sequence[str], console: Console) -> None:
    """Print the changes between two measurements."""
    table = make_table(["case", "variant", "metric"], ["before", "after", "after / before (95%)"], ["verdict"])
    for change in changes:
        table.add_row(
            f"{change['suite']}: {change['case']}",
            change["variant"],
            change["metric"] + (" / baseline" if change["to_baseline"] else ""),
            number(change["before"], change["unit"]),
            number(change["after"], change["unit"]),
            figure_text({"figure": change["figure"], "kind": "ratio", "unit": ""}),
            coloured({**change, "verdict": "regression"} if change["regression"] else change),
        )
    console.print(table)
    if any(change["verdict"] == "worse" and not change["regression"] for change in changes):
        text = "worse: within --tolerance, or a time on a busy or a different machine"
        console.print(Text(text, style="dim"))
    _print_if_noisy(changes, console)
    for note in notes:
        console.print(Text(note, style="yellow"))
