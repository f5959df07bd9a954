"""Printing for people: as wide as the terminal, and elsewhere one line for each thing, for grep and its like."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.table import Table

__all__ = ["STATES", "bytes_of", "columns", "console", "count_of", "is_terminal", "show"]

STATES = {"active": "green", "unused": "dim", "blocked": "yellow", "failed": "red", "disabled": "yellow"}
"""Colours of what can become of a plugin."""
_ENDLESS = 10**9
"""Width of a pipe or a file."""


def console() -> Console:
    """A console on the standard output: as wide as the terminal, or ``COLUMNS`` there, and without end elsewhere.

    Elsewhere ``COLUMNS`` does not count, as a program may have it from a parent that knows nothing of where it writes:
    once a Python process has imported ``readline``, those that it starts have one, and be it a guess.
    """
    return Console(highlight=False, width=None if is_terminal() else _ENDLESS)


def is_terminal() -> bool:
    """Whether someone looks at the standard output."""
    return sys.stdout.isatty()


def columns(*names: str, header: bool = True) -> Table:
    """A table without lines around it, whose last column takes what is left; long words are folded, never cut."""
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=header)
    for name in names:
        table.add_column(name, overflow="fold", no_wrap=name != names[-1])
    return table


def show(to: Console, what: RenderableType) -> None:
    """Print without the spaces that fill up lines."""
    with to.capture() as captured:
        to.print(what)
    for line in captured.get().rstrip("\n").split("\n"):
        print(line.rstrip())


def count_of(number: float) -> str:
    """A number of things in three figures: ``135M``, ``8.03B``."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size * 0.9995:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def bytes_of(number: float) -> str:
    """A size in three figures, in units of 1024: ``538 MiB``."""
    units: Sequence[tuple[int, str]] = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
    for size, unit in units:
        if abs(number) >= size * 0.9995:
            shown = number / size
            return f"{shown:.0f} {unit}" if shown >= 100 else f"{shown:.3g} {unit}"
    return f"{number:.0f} B"
