"""For how long a save holds up the training, at once and in the background, beside ``torch.save``.

    python -m benchmarks.saving [--parameters 33] [--rounds 3] [--folder DIR] [--json FILE]

One model (an embedding and a head) with AdamW is trained and saved every eight steps, the sides in turns, forth and
back, in processes of their own. *stands still* is the time in which no step goes on: of a save at once all of it, of
one in the background the copy and what is left to wait for. *longer* is by how much a save makes the whole run longer:
steps are slower while another thread writes. ``torch.save`` writes the same weights and the same optimizer's state to
the same disk, and flushes them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from hooktrain import Trainer, hookimpl
from hooktrain.bench.machine import commit, describe

STEPS, EVERY, WIDTH = 24, 8, 512
SIDES = ("no saves", "torch.save", "at once", "in the background")


class Clock:
    """Times the steps, the saves, and on one side saves by ``torch.save``."""

    def __init__(self, side: str, folder: Path) -> None:
        self.side, self.folder = side, folder
        self.stalls: list[float] = []

    @hookimpl
    def on_train_start(self) -> None:
        self.began = time.perf_counter()

    @hookimpl(tryfirst=True)
    def on_step_end(self, trainer: Trainer) -> None:
        if self.side != "torch.save" or trainer.global_step % EVERY:
            return
        began = time.perf_counter()
        with (self.folder / "plain.pt").open("wb") as stream:
            torch.save({"model": trainer.model.state_dict(), "optimizer": trainer.optimizer.state_dict()}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        self.stalls.append(time.perf_counter() - began)

    @hookimpl(wrapper=True)
    def save_checkpoint(self) -> Any:
        began = time.perf_counter()
        saved = yield
        if self.side == "at once":
            self.stalls.append(time.perf_counter() - began)
        return saved

    @hookimpl
    def on_checkpoint_end(self, trainer: Trainer) -> None:
        if self.side == "in the background":
            self.stalls.append(trainer.checkpoint_engines[0].last_stall)

    @hookimpl
    def on_train_end(self) -> None:
        self.seconds = time.perf_counter() - self.began


def measure(side: str, parameters: int, folder: Path) -> dict[str, Any]:
    """One run in this process."""
    from hooktrain.testing import train

    clock = Clock(side, folder)
    saves = {"type": "full", "save_every_n_steps": EVERY, "keep_last": 1, "asynchronous": side == "in the background"}
    recipe = {
        "type": "tiny",
        "run_dir": str(folder),
        "micro_batch_size": 8,
        "train_iters": STEPS,
        "data": {"rows": 8 * STEPS, "eval_rows": 0, "length": 512},
        "model": {"vocab": parameters * 1_000_000 // (2 * WIDTH), "width": WIDTH},
        "optimizer": {"type": "adamw", "lr": 1e-4},
        "strategy": {"dtype": "fp32", "device": "cpu"},
        "console": {"enabled": False},
        "checkpoint": [saves] if side in ("at once", "in the background") else [],
    }
    trainer = train(recipe, clock)
    count = sum(parameter.numel() for parameter in trainer.model.parameters())
    return {"side": side, "seconds": clock.seconds, "stalls": clock.stalls, "parameters": count}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parameters", type=int, default=33, help="millions")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk that is measured")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        print(json.dumps(measure(given.side, given.parameters, given.folder)))
        return
    runs: list[dict[str, Any]] = []
    for number in range(given.rounds):
        for side in SIDES if number % 2 == 0 else reversed(SIDES):
            folder = Path(tempfile.mkdtemp(dir=given.folder))
            words = ["--side", side, "--parameters", str(given.parameters), "--folder", str(folder)]
            command = [sys.executable, "-m", "benchmarks.saving", *words]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
            shutil.rmtree(folder)
    median = {side: statistics.median(run["seconds"] for run in runs if run["side"] == side) for side in SIDES}
    table = Table("side", "stands still, s", "run, s", "longer per save, s")
    for side in SIDES:
        stalls = [stall for run in runs if run["side"] == side for stall in run["stalls"]]
        longer = (median[side] - median["no saves"]) / (STEPS // EVERY)
        still = f"{statistics.median(stalls):.2f} ({min(stalls):.2f} to {max(stalls):.2f})" if stalls else ""
        table.add_row(side, still, f"{median[side]:.1f}", f"{longer:.2f}" if stalls else "")
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(f"{runs[0]['parameters'] / 1e6:.1f} million parameters, medians of {given.rounds} runs")
    console.print(table)
    if given.json:
        facts = {"machine": describe(), **commit(Path(__file__).parent), "torch": torch.__version__, "runs": runs}
        given.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
