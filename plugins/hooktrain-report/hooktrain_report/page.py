"""Runs as one self-contained HTML page."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from hooktrain import HooktrainError, RunFiles, mask_text, read_run, recipe_differences
from hooktrain_report import sections
from hooktrain_report.html import Html, document, text

__all__ = ["write_report"]


def write_report(
    folders: Sequence[Path | str], output: Path | str | None = None, outcome: Mapping[str, Any] | None = None
) -> Path:
    """Write runs as one HTML page, several side by side, and return its path.

    Args:
        folders: run directories.
        output: the page; ``report.html`` in the run directory, or here where there are several runs.
        outcome: how the run ends, where it is about to.

    Raises:
        HooktrainError: a folder is no run directory, or the page cannot be written.
    """
    runs = [read_run(folder) for folder in dict.fromkeys(map(Path, folders))]
    if outcome is not None:
        runs = [attrs.evolve(run, facts={**run.facts, **outcome}) for run in runs]
    page = Path(output) if output is not None else (runs[0].folder if len(runs) == 1 else Path()) / "report.html"
    made = mask_text(document(" and ".join(names_of(runs)), _body(runs)))
    half = page.with_name(f".{page.name}.{secrets.token_hex(4)}")
    try:
        half.write_text(made, encoding="utf-8")
        os.replace(half, page)  # a reader finds the old page or the new one
    except OSError as problem:
        half.unlink(missing_ok=True)
        raise HooktrainError(
            f"report: '{page}' cannot be written ({problem.strerror}); give another file with -o"
        ) from problem
    return page


def names_of(runs: Sequence[RunFiles]) -> list[str]:
    """Return a name for each run: that of its folder, or its path where two have the same."""
    short = [run.folder.resolve().name for run in runs]
    return [name if short.count(name) == 1 else str(run.folder) for name, run in zip(short, runs, strict=True)]


def _body(runs: Sequence[RunFiles]) -> list[str]:
    names = names_of(runs)
    several = len(runs) > 1
    title = f"{len(runs)} runs" if several else names[0]
    parts: list[str] = [f"<h1>{text(title)}</h1>", _shown(sections.summary, runs, names)]
    if several:
        found = recipe_differences([run.recipe for run in runs])
        parts += ["<h2>Recipe differences</h2>", _shown(sections.differences, found, names)]
    parts += [
        _section("Curves", _shown(sections.curves, runs, names)),
        _section("Evaluation", _shown(sections.evaluation, runs, names)),
        _section("Events", _shown(sections.events, runs, names)),
    ]
    for title, section in (
        ("Warnings", sections.warnings),
        ("Answers", sections.answers),
        ("Data", sections.data),
        ("Checkpoints", sections.checkpoints),
        ("Recipe", sections.recipe),
        ("Plugins", sections.plugins),
    ):
        inside = [_shown(section, run) for run in runs]
        heads = [f"<h3>{text(name)}</h3>" if several else "" for name in names]
        parts.append(_section(title, "".join(head + made for head, made in zip(heads, inside, strict=True) if made)))
    return [part for part in parts if part]


def _shown(section: Callable[..., Html], *given: Any) -> Html:
    """Return a section; of a run whose files hold something that no run writes, why there is none."""
    try:
        return section(*given)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as problem:
        said = f"This part cannot be shown: a file of the run holds what no run writes ({type(problem).__name__}:"
        return Html(f"<p class='warning'>{text(f'{said} {problem}).')}</p>")


def _section(title: str, inside: str) -> str:
    return Html(f"<h2>{text(title)}</h2>\n{inside}") if inside else ""
