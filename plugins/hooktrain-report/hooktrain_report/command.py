"""Command ``hooktrain report``, which writes runs as one HTML page."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["report_command"]


@click.command("report")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The page; RUN/report.html, or report.html here.")
def report_command(runs: tuple[Path, ...], output: Path | None) -> None:
    """Write a run as one HTML page, or several side by side.

    RUN is the directory of a run, which may still run. The page needs no network and no other file.
    """
    from hooktrain_report.page import write_report

    page = write_report(runs, output)
    click.echo(f"wrote {page}")
