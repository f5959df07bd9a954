"""The results as text that fits a hundred columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from benchmarks.ratios import Ratio
from benchmarks.sft.cases import Row

__all__ = ["WIDTH", "table"]

WIDTH = 100
_COLUMNS = (("case", 34), ("ours", 12), ("theirs", 12), ("ratio", 20), ("target", 9), ("reached", 7))


def table(rows: Sequence[Row]) -> str:
    """A line for each row, then the notes, each with the name of its case."""
    lines = [_line([name for name, _ in _COLUMNS]), _line(["-" * width for _, width in _COLUMNS])]
    for row in rows:
        numbers = [_number(row.ours, row.unit), _number(row.theirs, row.unit), _ratio(row.ratio)]
        reached = "?" if row.reached is None else ("yes" if row.reached else "no") + ("?" if row.noisy else "")
        lines.append(_line([row.title, *numbers, row.target, reached]))
    if any(row.noisy for row in rows):
        lines.append("? other programs used the processor beside it; that is no clean timing")
    notes = [f"{row.title}: {note}" for row in rows for note in row.notes]
    for note in dict.fromkeys(notes):
        lines.append(textwrap.fill(note, WIDTH, subsequent_indent="  "))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return " ".join(cell[:width].ljust(width) for cell, (_, width) in zip(cells, _COLUMNS, strict=True)).rstrip()


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return f"{value:.{0 if value >= 100 else 2 if value < 10 else 1}f} {unit}"


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio.value:.2f}" + ("" if ratio.low is None else f" ({ratio.low:.2f} to {ratio.high:.2f})")
