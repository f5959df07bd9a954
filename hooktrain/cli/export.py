"""``hooktrain export``: a trained model as a folder for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from hooktrain.cli.options import source_options

__all__ = ["export"]


@click.command()
@source_options("RUN")
@click.option("--output", type=click.Path(path_type=Path), help="New folder; export-step-N in the run directory.")
@click.option("--best", is_flag=True, help="The checkpoint with the best evaluation, not the newest.")
@click.option("--merge", is_flag=True, help="Merge an adapter into the weights of its base.")
@click.option(
    "--dtype", type=click.Choice(["fp32", "bf16", "fp16"]), help="Precision of the weights; the run's own export's."
)
def export(
    source: str,
    overrides: tuple[str, ...],
    switches: tuple[str, ...],
    output: Path | None,
    best: bool,
    merge: bool,
    dtype: str | None,
) -> None:
    """Write a trained model as a folder for other programs.

    RUN is a run directory or a checkpoint of any strategy; with --merge also a folder with an adapter. The result is
    what the run itself would have exported at that step. No device is used, and no more memory than the model takes.
    """
    from hooktrain.cli.startup import collect_rarely, sleep_while_waiting

    sleep_while_waiting()
    with collect_rarely():
        from hooktrain.training.export import export_model_of

        made = export_model_of(
            source, output, best=best, merge=merge, dtype=dtype, overrides=overrides, switches=switches
        )
    step = "" if made.step is None else f", step {made.step}"
    click.echo(f"exported {made.source}{step}: {made.folder}, {made.weights:,} weights")
