"""Driver of hooktrain on pairs, through a recipe.

The specification: ``recipe`` (without ``run_dir``) and ``threads``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hooktrain.bench.driver import StepClock, drive

# torch and hooktrain are imported inside functions, because they belong to the time and memory that are measured


def _plugin(findings: dict[str, Any]) -> object:
    from hooktrain import hookimpl

    class Timed:
        """Times each step at its log line, which has waited for the device and comes last in a step."""

        def __init__(self) -> None:
            self.clock = StepClock()
            self.before = {"tokens": 0.0, "pairs": 0.0}
            self.computed = 0

        @hookimpl(trylast=True)
        def on_train_start(self, trainer: Any) -> None:
            embedding = trainer.model.get_input_embeddings()
            embedding.register_forward_pre_hook(self.count)
            self.clock.start()

        def count(self, module: Any, args: Any) -> None:
            self.computed += args[0].numel()

        @hookimpl(trylast=True)
        def on_log(self, metrics: Mapping[str, float]) -> None:
            done = {name: metrics[name] - before for name, before in self.before.items()}
            margin = metrics["rewards/margins"]
            self.clock.step(**done, computed=self.computed, loss=metrics["loss"], margin=margin)
            self.before, self.computed = {name: metrics[name] for name in self.before}, 0

        @hookimpl
        def on_train_end(self) -> None:
            findings.update(self.clock.findings())

    return Timed()


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Run the recipe."""
    import torch

    from hooktrain import Trainer
    from hooktrain.training.load import load

    torch.set_num_threads(given["threads"])
    findings: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        recipe = {**given["recipe"], "run_dir": str(Path(folder) / "run"), "console": {"enabled": False}}
        made, host = load(recipe, plugins=[_plugin(findings)])
        Trainer(made, host).run()
    return findings


if __name__ == "__main__":
    drive(measure, "torch", "transformers", "hooktrain", "hooktrain-preference", "datasets")
