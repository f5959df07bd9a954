"""hooktrain on the same model and sequences, through a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.strategy.common import LOG_EVERY, LR, Blocks, loss_of, row_of
from hooktrain import Data, LossSum, hookimpl
from hooktrain.bench.driver import StepClock

__all__ = ["train"]

_STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"type": "torch"},
    "fsdp2": {"type": "torch", "data_parallel": "fsdp2"},
    **{f"zero{stage}": {"type": "deepspeed", "zero_stage": stage} for stage in range(4)},
}


class _Rows:
    """A dataset that is in memory before the first step, as that of the loops is."""

    def __init__(self, given: dict[str, Any], world: int) -> None:
        count = given["steps"] * world * given["rows"]
        self.rows = [row_of(index, given["tokens"], given["model"]["vocab"]) for index in range(count)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.rows[index]


def _collate(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Stack sequences of shape (tokens,) to a micro-batch of shape (sequences, tokens)."""
    ids = torch.stack(rows)
    return {"input_ids": ids, "labels": ids}


class _Blocks:
    """A plugin with the model, the dataset and the loss, which times from one step's start to the next."""

    def __init__(self, given: dict[str, Any], world: int) -> None:
        self.given, self.world = given, world
        self.losses: list[float] = []
        self.clock: StepClock | None = None

    @hookimpl(tryfirst=True)
    def make_data(self) -> Data:
        return Data(train=_Rows(self.given, self.world), collate=_collate, shuffle=False)

    @hookimpl(tryfirst=True)
    def make_model(self) -> Blocks:
        torch.manual_seed(0)
        return Blocks(**self.given["model"])

    @hookimpl(tryfirst=True)
    def make_loss(self) -> Any:
        return lambda model, batch, denominator: LossSum(loss_of(model, batch["input_ids"]), denominator)

    @hookimpl(tryfirst=True)
    def on_step_start(self) -> None:
        if self.clock is None:
            self.clock = StepClock()
        else:
            self.clock.step()

    @hookimpl(trylast=True)
    def on_log(self, metrics: Mapping[str, float]) -> None:
        self.losses.append(metrics["loss"])

    @hookimpl(tryfirst=True)
    def on_train_end(self) -> None:
        assert self.clock is not None
        self.clock.step()


def train(given: dict[str, Any], rank: int, world: int) -> dict[str, Any]:
    """Train on this rank."""
    from hooktrain.testing import train as run

    plugin = _Blocks(given, world)
    recipe = {
        "type": "tiny",
        "run_dir": str(Path(given["folder"]) / "run"),
        "micro_batch_size": given["rows"],
        "train_iters": given["steps"],
        "log_interval": LOG_EVERY,
        "optimizer": {"type": "adamw", "lr": LR, "weight_decay": 0.0},
        "strategy": {**_STRATEGIES[given["strategy"]], "dtype": "fp32", "device": "cpu"},
        "console": {"enabled": False},
    }
    run(recipe, plugin)
    assert plugin.clock is not None
    return {**plugin.clock.findings(), "loss": plugin.losses}
