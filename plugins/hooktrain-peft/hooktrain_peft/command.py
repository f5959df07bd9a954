"""Command ``hooktrain merge``, which merges an adapter into its base and writes a folder for ``from_pretrained``."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["merge_command"]


@click.command("merge")
@click.argument("source", metavar="ADAPTER_OR_RUN", type=click.Path(path_type=Path))
@click.option("--output", required=True, type=click.Path(path_type=Path), help="New folder for the merged model.")
@click.option("--base", metavar="MODEL", help="The base: a folder, a .gguf file or a hub name.")
@click.option("--dtype", type=click.Choice(["fp32", "bf16", "fp16"]), help="Precision of the weights; the base's own.")
@click.option("--trust-remote-code", is_flag=True, help="Let Python code that comes with the base run.")
def merge_command(source: Path, output: Path, base: str | None, dtype: str | None, trust_remote_code: bool) -> None:
    """Merge an adapter into its base.

    ADAPTER_OR_RUN is a folder with an adapter, or the run_dir of a run that exported one. The merged model is written,
    loaded again, and compared with the adapter on its base before OUTPUT appears.
    """
    from hooktrain_peft.merge_source import find_merge_source
    from hooktrain_peft.merged_folder import write_merged_folder

    inputs = find_merge_source(source, base, dtype, trust_remote_code)
    result = write_merged_folder(inputs, output)
    click.echo(
        f"merged {inputs.adapter} into {inputs.base.name_or_path}: {output}, {result.weights:,} weights in"
        f" {result.dtype}; its logits differ from the adapter's by {result.difference:.1e} of their size"
    )
