"""``hooktrain evaluate``: the evaluation sets and metrics of a recipe on a trained model."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from hooktrain.cli.options import as_json, print_facts, source_options

__all__ = ["evaluate"]


@click.command()
@source_options("RUN|MODEL")
@click.option("--best", is_flag=True, help="The checkpoint with the best evaluation, not the newest.")
@click.option(
    "--recipe", type=click.Path(path_type=Path), help="Whose evaluation sets and metrics; the run's by default."
)
@click.option("--nproc", type=click.IntRange(1), default=1, show_default=True, help="Processes to start on this host.")
@as_json
def evaluate(
    source: str,
    overrides: tuple[str, ...],
    switches: tuple[str, ...],
    best: bool,
    recipe: Path | None,
    nproc: int,
    as_json: bool,
) -> None:
    """Evaluate a trained model without training it.

    RUN is a run directory or a checkpoint, whose figures are those that the run logged at that step. MODEL is an
    export, an adapter or the name of a model. -o data.eval_sources=[rows.jsonl] and -o eval_metrics=[...] change what
    is measured.
    """
    from hooktrain.cli.startup import collect_rarely, sleep_while_waiting

    sleep_while_waiting()
    if nproc > 1 and "RANK" not in os.environ:
        from hooktrain.cli.launcher import launch

        words = ["evaluate", source, *(["--best"] if best else []), *(["--json"] if as_json else [])]
        words += ["--recipe", str(recipe)] if recipe else []
        for flag, values in {"-o": overrides, "-p": switches}.items():
            for value in values:
                words += [flag, value]
        sys.exit(launch(words, nproc))
    with collect_rarely():
        from hooktrain.training.evaluation import evaluate_model

        found = evaluate_model(source, best=best, recipe=recipe, overrides=overrides, switches=switches)
    if found.is_main:
        facts = {"source": found.source, "step": found.step, "metrics": dict(found.metrics)}
        print_facts(facts, as_json, _print)


def _print(facts: Mapping[str, Any]) -> None:
    from rich.markup import escape

    from hooktrain.inspection.terminal import columns, console, show

    step = "" if facts["step"] is None else f", step {facts['step']}"
    click.echo(f"{facts['source']}{step}")
    table = columns("metric", "value")
    for name, value in facts["metrics"].items():
        table.add_row(escape(name), f"{value:.6g}")
    show(console(), table)
