"""``hooktrain lowest``: at which step was a metric lowest."""

from __future__ import annotations

import json
from pathlib import Path

import click
from hooktrain import HooktrainError, PluginInfo, did_you_mean

hooktrain_plugin = PluginInfo(commands={"lowest": "lowest:lowest"})


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--metric", default="loss", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def lowest(run_dir: Path, metric: str, as_json: bool) -> None:
    """Show at which step a run's metric was lowest."""
    line = find_lowest(run_dir, metric)
    found = {"step": line["step"], metric: line[metric]}
    text = f"step {line['step']}: {metric} {line[metric]:.4f}"
    click.echo(json.dumps(found) if as_json else text)


def find_lowest(run_dir: Path, metric: str) -> dict[str, float]:
    """The log line in which a metric is lowest."""
    path = run_dir / "metrics.jsonl"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as problem:
        raise HooktrainError(
            f"{path}: cannot be read ({problem.strerror}); give the"
            " folder of a run"
        ) from problem
    lines = [json.loads(line) for line in text.splitlines()]
    having = [line for line in lines if metric in line]
    if not having:
        names = sorted({name for line in lines for name in line})
        raise HooktrainError(
            f"{path}: has no metric '{metric}'"
            f"{did_you_mean(metric, names)}; there are {', '.join(names)}"
        )
    best: dict[str, float] = min(having, key=lambda line: line[metric])
    return best
