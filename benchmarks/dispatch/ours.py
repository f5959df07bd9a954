"""Driver of hooktrain on the same layer, through a recipe, as ``hooktrain train`` runs one.

The specification: ``chunks``, ``threads``, ``log_every`` (null for the default), and ``plugins``: how many there are
in addition to the installed ones, and whether they are ``silent``, ``observing`` or ``unheld``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

from benchmarks.dispatch.common import LR, ROWS, Chunks, found, layer, make_rows
from hooktrain import BatchCounts, Data, LossSum, PluginInfo, TrainerType, hookimpl
from hooktrain.bench.driver import drive

__all__ = ["HOOKS", "Observing", "Silent", "Unheld"]

HOOKS = 6
"""Hooks that an observing plugin implements: all events of a step without evaluation or saving."""


class Silent:
    """A plugin that implements no hook of a step, like most plugins."""

    @hookimpl
    def on_train_end(self) -> None: ...


class Observing:
    """A plugin that implements all events of a step and does nothing."""

    @hookimpl
    def on_step_start(self, trainer: Any, batches: Any) -> None: ...

    @hookimpl
    def on_step_end(self, trainer: Any, output: Any) -> None: ...

    @hookimpl
    def on_microbatch_start(self, trainer: Any, batch: Any) -> None: ...

    @hookimpl
    def on_microbatch_end(self, trainer: Any, batch: Any, loss: Any) -> None: ...

    @hookimpl
    def on_optimizer_step_start(self, trainer: Any) -> None: ...

    @hookimpl
    def on_optimizer_step_end(self, trainer: Any, grad_norm: Any) -> None: ...


class Unheld(Observing):
    """The same, with the declaration under which no run compares what it changes."""

    hooktrain_plugin = PluginInfo(changes_gradients=True)


class _Layer:
    """A plugin with the trainer type ``one-layer``."""

    def __init__(self, rows: list[torch.Tensor], clock: Chunks) -> None:
        self.rows, self.clock = rows, clock

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {kind: {"one-layer": attrs.make_class(kind, {}, frozen=True)} for kind in ("data", "model", "loss")}

    @hookimpl
    def register_trainer_types(self) -> Mapping[str, TrainerType]:
        own = {kind: ("one-layer",) for kind in ("data", "model", "loss")}
        others = {"optimizer": ("adamw",), "scheduler": ("constant",), "strategy": ("torch",)}
        return {"one-layer": TrainerType({**own, **others})}

    @hookimpl(tryfirst=True)
    def make_data(self) -> Data:
        return Data(train=self.rows, collate=self.clock, shuffle=False)

    @hookimpl(tryfirst=True)
    def make_model(self) -> torch.nn.Module:
        return layer()

    @hookimpl(tryfirst=True)
    def make_loss(self) -> Callable[..., LossSum]:
        return lambda model, batch, denominator: LossSum(((model(batch["x"]) - batch["x"]) ** 2).sum(), denominator)

    @hookimpl
    def count_batch(self) -> BatchCounts:
        return BatchCounts(ROWS, ROWS, ROWS)


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Train one epoch with every installed plugin; only the console is disabled."""
    from hooktrain.training.load import load
    from hooktrain.training.trainer import Trainer

    torch.set_num_threads(given["threads"])
    clock = Chunks()
    recipe = {
        "type": "one-layer",
        "run_dir": str(Path.cwd() / "run"),
        "micro_batch_size": ROWS,
        "gradient_clipping": 0.0,
        "optimizer": {"lr": LR, "weight_decay": 0.0},
        "strategy": {"dtype": "fp32", "device": "cpu"},
        "console": {"enabled": False},
    }
    if given["log_every"] is not None:
        recipe["log_interval"] = given["log_every"]
    kind = {"silent": Silent, "observing": Observing, "unheld": Unheld}[given["plugins"]["kind"]]
    more = [kind() for _ in range(given["plugins"]["count"])]
    made, host = load(recipe, plugins=[_Layer(make_rows(given["chunks"]), clock), *more])
    trainer = Trainer(made, host)
    trainer.run()
    model = trainer.model
    assert isinstance(model, torch.nn.Linear)
    names = [record.name for record in host.records.values() if record.state in ("active", "unused")]
    return found(model, clock, plugins=names[: len(names) - len(more)], more_plugins=len(more))


if __name__ == "__main__":
    drive(measure, "torch", "hooktrain")
