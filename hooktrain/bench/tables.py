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

__all__ = ["COLOURS", "figure_text", "notes_of", "number", "print_changes", "print_line", "print_suites"]

COLOURS = {
    "passed": "green",
    "better": "green",
    "worse": "red",
    "failed": "red",
    "error": "red",
    "regression": "red",
    "undecided": "yellow",
    "not installed": "yellow",
}
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


def print_line(line: Line, console: Console) -> None:
    """Print a case's result: the variants' medians, the comparisons, and notes on them."""
    chosen = ", ".join(f"{name} {str(value)[:40]}" for name, value in line["parameters"].items())
    console.print()
    console.print(Text(f"{line['suite']}: {line['case']}", style="bold") + Text(f"  {chosen}" if chosen else ""))
    if line["about"]:
        console.print(Text(line["about"], style="dim"))
    console.print(_medians(line))
    for variant, facts in line["variants"].items():
        if "error" in facts:
            console.print(Text(f"{variant}: {facts['error']}", style="yellow" if facts.get("not_installed") else "red"))
    compared = line["comparisons"]
    if not compared:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, options in (
        ("compared", {"overflow": "fold"}),
        ("metric", {"overflow": "fold"}),
        ("figure (95%)", {"overflow": "fold", "justify": "right"}),
        ("target", {"no_wrap": True}),
        ("verdict", {"no_wrap": True}),
    ):
        table.add_column(name, **options)
    for each in compared:
        mark = "?" if each["noisy"] else ""
        verdict = Text(each["verdict"] + mark, style=COLOURS.get(each["verdict"], ""))
        name = each["name"] if each["limit"] or not each["to"] else f"{each['variant']} to {each['to']}"
        table.add_row(name, each["metric"].replace("_", " "), figure_text(each), each["limit"], verdict)
    console.print(table)
    for note in notes_of(compared):
        console.print(Text(note, style="dim"))
    if any(each["noisy"] for each in compared):
        console.print(
            Text(f"? other programs used more than {NOISY:.0%} of the processor time meanwhile", style="yellow")
        )


def notes_of(compared: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the notes on comparisons; one that holds for several of them only once."""
    said: dict[str, list[str]] = {}
    for each in compared:
        for text in (each["why"], *each["notes"]):
            if text:
                said.setdefault(text, []).append(f"{each['name']}, {each['metric']}")
    return [f"{'; '.join(of) if len(of) < 3 else f'{len(of)} comparisons'}: {text}" for text, of in said.items()]


def _medians(line: Line) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("variant", overflow="fold")
    shown = [
        metric
        for metric in line["metrics"]
        if any(values(line, variant, metric["name"]) for variant in line["variants"])
    ]
    for metric in shown:
        table.add_column(metric["name"].replace("_", " "), justify="right")
    for variant in line["variants"]:
        cells = []
        for metric in shown:
            found = values(line, variant, metric["name"])
            cells.append(number(median_of(found, samples=1).value, metric["unit"]) if found else "-")
        table.add_row(
            variant + (" (baseline)" if variant == line["baseline"] and len(line["variants"]) > 1 else ""), *cells
        )
    return table


def print_suites(suites: Sequence[Mapping[str, str]], console: Console) -> None:
    """Print the suites."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("suite", "of", "measures"):
        table.add_column(name, overflow="fold")
    for suite in suites:
        table.add_row(suite["name"], suite["plugin"], suite["summary"])
    console.print(table)


def print_changes(changes: Sequence[Mapping[str, Any]], notes: Sequence[str], console: Console) -> None:
    """Print the changes between two measurements."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("case", "variant", "metric"):
        table.add_column(name, overflow="fold")
    for name in ("before", "after", "after / before (95%)"):
        table.add_column(name, justify="right")
    table.add_column("verdict", no_wrap=True)
    for change in changes:
        table.add_row(
            f"{change['suite']}: {change['case']}",
            change["variant"],
            change["metric"] + (" / baseline" if change["to_baseline"] else ""),
            number(change["before"], change["unit"]),
            number(change["after"], change["unit"]),
            figure_text({"figure": change["figure"], "kind": "ratio", "unit": ""}),
            Text(
                ("regression" if change["regression"] else change["verdict"]) + ("?" if change["noisy"] else ""),
                style=COLOURS.get(change["verdict"], ""),
            ),
        )
    console.print(table)
    if any(change["verdict"] == "worse" and not change["regression"] for change in changes):
        console.print(
            Text(
                "worse: within --tolerance, or a time on a busy or a different machine", style="dim"
            )
        )
    if any(change["noisy"] for change in changes):
        console.print(Text(f"? other programs used more than {NOISY:.0%} of the processor time", style="yellow"))
    for note in notes:
        console.print(Text(note, style="yellow"))
