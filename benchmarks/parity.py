"""Parity of every strategy with a training loop of forty plain lines of PyTorch.

    python -m benchmarks.parity [--ranks 1,2] [--epochs 4] [--json FILE]

All train the same small model on the same sequences with the same global batch: 13 sequences of random lengths, partly
masked, eight per step and five in the last of an epoch, gradients accumulated over micro-batches of two and clipped,
AdamW. Each strategy runs through the command line in processes of its own. The figures are the largest
absolute differences, over all steps, from the losses of the reference loop in ``tests/reference_loop.py``, and, over
all weights, from where it ends.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from hooktrain_torch import CheckpointTensors
from rich.console import Console
from rich.table import Table

from hooktrain.bench.machine import commit, describe
from tests.reference_loop import reference

GLOBAL_BATCH, MICRO, LR = 8, 2, 0.01
STRATEGIES: dict[str, dict[str, Any]] = {
    "torch, DDP": {"type": "torch"},
    "torch, FSDP2": {"type": "torch", "data_parallel": "fsdp2"},
    **{f"deepspeed, ZeRO {stage}": {"type": "deepspeed", "zero_stage": stage} for stage in range(4)},
}


def run(strategy: dict[str, Any], ranks: int, epochs: int, folder: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Return the losses of each step, and the weights at the end."""
    recipe = {
        "type": "tiny",
        "run_dir": str(folder / "run"),
        "micro_batch_size": MICRO,
        "gradient_accumulation_steps": GLOBAL_BATCH // (MICRO * ranks),
        "epochs": epochs,
        "strategy": {**strategy, "dtype": "fp32", "device": "cpu"},
        "optimizer": {"type": "adamw", "lr": LR},
        "checkpoint": [{"type": "full", "save_end_of_training": True}],
        "console": {"enabled": False},
        "plugins": {"load": ["hooktrain.testing:TinyPlugin"]},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "hooktrain", "train", str(path), "--nproc", str(ranks)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    (checkpoint,) = (folder / "run" / "checkpoints").iterdir()
    tensors = CheckpointTensors(checkpoint, "model", json.loads((checkpoint / "tensors.json").read_text())["model"])
    return [line["loss"] for line in lines], {
        n: tensors.read(n).view(tensors.shape(n)).clone() for n in tensors.names()
    }


def compare(ranks: list[int], epochs: int) -> Iterator[dict[str, Any]]:
    """Yield a line for each strategy and number of ranks."""
    losses, model = reference({}, {}, micro=MICRO, accumulation=GLOBAL_BATCH // MICRO, epochs=epochs, lr=LR, clip=1.0)
    for name, strategy in STRATEGIES.items():
        for count in ranks:
            with tempfile.TemporaryDirectory() as folder:
                found, weights = run(strategy, count, epochs, Path(folder))
            if len(found) != len(losses):
                raise SystemExit(f"{name}, {count} ranks: {len(found)} steps, expected {len(losses)}")
            apart = max(abs(one - other) for one, other in zip(found, losses, strict=True))
            moved = max(float((weights[n] - value).abs().max()) for n, value in model.state_dict().items())
            yield {"strategy": name, "ranks": count, "steps": len(found), "loss": apart, "weights": moved}


def main() -> None:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", default="1,2", help="numbers of ranks")
    parser.add_argument("--epochs", type=int, default=4, help="passes over the rows, of two steps each")
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = parser.parse_args()
    table = Table("strategy", "ranks", "steps", "loss, largest difference", "weights, largest difference")
    found = []
    for line in compare([int(text) for text in given.ranks.split(",")], given.epochs):
        found.append(line)
        table.add_row(
            line["strategy"], str(line["ranks"]), str(line["steps"]), f"{line['loss']:.1e}", f"{line['weights']:.1e}"
        )
    Console(width=None if sys.stdout.isatty() else 110).print(table)
    facts = {"machine": describe(), **commit(Path(__file__).parent), "torch": torch.__version__, "found": found}
    if given.json:
        given.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
