"""Driver that trains one step on a huge dataset, from its start or from a checkpoint at any place in it.

The specification: ``rows`` of the epoch, ``folder``, ``resume_from`` (a checkpoint, or null), and ``save_at``: the row
to save at, or null for a run that ends after its first step. Rows are made when they are read, so that only the
engine's own work takes time.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from hooktrain.bench.driver import BEGAN, drive

# torch and hooktrain are imported inside functions, because that time is part of the start

LENGTH, BATCH = 16, 2


class Rows:
    """A dataset of ``length`` sequences of 16 tokens that counts how many were read."""

    def __init__(self, length: int) -> None:
        self.length, self.read = length, 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        import torch

        self.read += 1
        return (torch.arange(LENGTH) * 7 + index) % 17


def _collate(rows: list[Any]) -> dict[str, Any]:
    """Stack sequences of shape (tokens,) to tensors of shape (sequences, tokens)."""
    import torch

    ids = torch.stack(rows)
    return {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)}


def _plugin(given: dict[str, Any], findings: dict[str, Any]) -> object:
    from hooktrain import Data, Trainer, hookimpl

    class Many:
        """Provides the dataset, and measures the time to the first step."""

        @hookimpl(tryfirst=True)
        def make_data(self) -> Data:
            self.rows = Rows(given["rows"])
            return Data(train=self.rows, collate=_collate)

        @hookimpl
        def on_resume_start(self) -> None:
            self.began = time.perf_counter()

        @hookimpl
        def on_resume_end(self) -> None:
            findings["resume_seconds"] = time.perf_counter() - self.began

        @hookimpl(tryfirst=True)
        def on_train_start(self, trainer: Trainer) -> None:
            if given["save_at"] is not None:  # as if all earlier ones had been trained on
                trainer.state.sequences = given["save_at"] - BATCH
                trainer.state.global_step = given["save_at"] // BATCH - 1

        @hookimpl(trylast=True)
        def on_step_end(self, trainer: Trainer) -> None:
            findings["start_seconds"] = time.monotonic() - float(os.environ[BEGAN])
            findings["row"] = trainer.state.sequences
            findings["rows_read"] = self.rows.read
            trainer.request_stop("only this step is measured")

    return Many()


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Train one step, and save after it if the specification says so."""
    import torch

    from hooktrain.testing import train

    torch.set_num_threads(given["threads"])
    findings: dict[str, Any] = {}
    folder = Path(given["folder"])
    saves = [{"type": "full", "save_end_of_training": True, "output_dir": str(folder)}]
    recipe = {
        "type": "tiny",
        "run_dir": "run",
        "micro_batch_size": BATCH,
        "eval_interval": 0,
        "optimizer": {"lr": 1e-3},
        "strategy": {"dtype": "fp32", "device": "cpu"},
        "console": {"enabled": False},
        "allow_changes": ["*"],
        "checkpoint": saves if given["save_at"] is not None else [{"type": "full"}],
    }
    resume_from = given["resume_from"]
    train(recipe, _plugin(given, findings), resume_from=Path(resume_from) if resume_from else None)
    return findings


if __name__ == "__main__":
    drive(measure, "torch", "hooktrain")
