"""Driver that runs a recipe once, and times its steps or counts its device syncs.

The specification: ``recipe`` (the content of a recipe file), ``folder`` to run it from, ``overrides`` and ``switches``
as on the command line, ``tiny`` (whether the trainer type ``tiny`` is needed), ``count`` (whether to count device
syncs, which makes timings worthless) and ``plugin``, the one that is measured, in the variant with it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hooktrain.bench.driver import BEGAN, StepClock, drive

# torch and hooktrain are imported inside functions, because that time is part of the start


def _timed(findings: dict[str, Any]) -> object:
    from hooktrain.markers import hookimpl

    class Timed:
        """Times from one step's start to the next, including data, log lines and saves."""

        losses: list[float]
        clock: StepClock | None

        @hookimpl(tryfirst=True)
        def on_train_start(self) -> None:
            self.losses, self.clock = [], None

        @hookimpl(tryfirst=True)
        def on_step_start(self) -> None:
            if self.clock is None:
                findings["start_seconds"] = time.monotonic() - float(os.environ.get(BEGAN, "nan"))
                self.clock = StepClock()
            else:
                self.clock.step()

        @hookimpl
        def on_log(self, metrics: Mapping[str, float]) -> None:
            if "loss" in metrics:
                self.losses.append(float(metrics["loss"]))

        @hookimpl(trylast=True)
        def on_train_end(self, trainer: Any) -> None:
            findings["loss"] = self.losses
            findings["parameters"] = sum(p.numel() for p in trainer.model.parameters())
            if self.clock is not None:
                self.clock.step()
                findings.update(self.clock.findings())

    return Timed()


def _counting(findings: dict[str, Any]) -> object:
    from hooktrain.builtins.device_sync import DeviceSyncs
    from hooktrain.markers import hookimpl

    class Counting:
        """Counts the device syncs of the training on a GPU."""

        steps = count = 0

        @hookimpl(tryfirst=True)
        def on_train_start(self, trainer: Any) -> None:
            self.syncs = DeviceSyncs(self.add, trainer.device)
            self.syncs.begin()

        def add(self) -> None:
            self.count += 1

        @hookimpl
        def on_step_end(self) -> None:
            self.steps += 1

        @hookimpl(trylast=True)
        def on_train_end(self) -> None:
            self.syncs.end()
            if self.syncs.counted:
                findings["device_syncs"] = self.count / max(1, self.steps)

    return Counting()


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Run the recipe in a temporary run directory."""
    import torch

    from hooktrain.plugin.usage import asks_for
    from hooktrain.training.load import load
    from hooktrain.training.trainer import Trainer

    torch.set_num_threads(given["threads"])
    os.chdir(given["folder"])
    findings: dict[str, Any] = {}
    plugins = [_counting(findings) if given["count"] else _timed(findings)]
    if given["tiny"]:
        from hooktrain.testing import TinyPlugin

        plugins.append(TinyPlugin())
    with tempfile.TemporaryDirectory() as folder:
        recipe = {**given["recipe"], "run_dir": str(Path(folder) / "run")}
        if recipe.get("checkpoint"):  # the user's checkpoints are not touched
            recipe["checkpoint"] = [
                {**engine, "output_dir": str(Path(folder) / f"saved-{at}"), "auto_resume": False}
                for at, engine in enumerate(recipe["checkpoint"])
            ]
        made, host = load(recipe, overrides=given["overrides"], switches=given["switches"], plugins=plugins)
        Trainer(made, host).run()
        findings["plugins"] = [record["name"] for record in host.manifest()]
        record = host.records.get(given.get("plugin", ""))
        if record is not None and (record.state != "active" or not asks_for(host, made, record)):
            findings["unused"] = record.reason or "the recipe chooses none of its parts and sets none of its settings"
    return findings


if __name__ == "__main__":
    drive(measure, "torch", "hooktrain")
