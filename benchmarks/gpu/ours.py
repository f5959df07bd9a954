"""Driver of hooktrain on a GPU, through a recipe; it times steps by events, or counts device syncs.

The specification: ``recipe`` (without ``run_dir``), ``threads``, and ``device_syncs``: whether to count the operations
between log lines that make the host wait for the device, as ``torch.cuda.set_sync_debug_mode`` reports them. Times are
worthless then.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hooktrain.bench.driver import StepClock, drive

# torch and hooktrain are imported inside functions, because they belong to the time and memory that are measured


class SyncCounter:
    """Counts the device syncs that torch reports while :meth:`watch` is on."""

    def __init__(self) -> None:
        self.count = 0
        self.seen: dict[str, int] = {}

    def begin(self) -> None:
        """Receive torch's warnings, all of those from the same place included."""
        warnings.simplefilter("always")
        warnings.showwarning = self._add  # type: ignore[assignment]

    def _add(self, message: Any, category: Any, filename: str, number: int, *more: Any) -> None:
        if "synchronizing CUDA operation" in str(message):
            self.count += 1
            place = f"{Path(filename).name}:{number}"
            self.seen[place] = self.seen.get(place, 0) + 1

    def watch(self, on: bool) -> None:
        """Turn torch's reports on or off."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn" if on else "default")


def _plugin(given: dict[str, Any], findings: dict[str, Any]) -> object:
    from hooktrain import Trainer, hookimpl

    class Timed:
        """Times from one step's start to the next, without making a step wait for the device."""

        def __init__(self) -> None:
            self.clock: StepClock | None = None
            self.syncs = SyncCounter()
            self.tokens = self.steps = 0
            self.losses: list[float] = []

        @hookimpl
        def on_train_start(self) -> None:
            if given["device_syncs"]:
                self.syncs.begin()

        @hookimpl(tryfirst=True)
        def on_step_start(self, batches: Sequence[Mapping[str, Any]]) -> None:
            if self.clock is None:
                self.clock = StepClock()
            else:
                self.clock.step(tokens=self.tokens)
            self.tokens = sum(int(batch.get("tokens", batch["input_ids"].numel())) for batch in batches)
            self.syncs.watch(given["device_syncs"])

        @hookimpl(trylast=True)
        def on_step_end(self, trainer: Trainer) -> None:
            self.steps += 1
            if trainer.global_step % trainer.recipe.log_interval == 0:
                self.syncs.watch(False)  # a log line is where the host may wait

        @hookimpl(trylast=True)
        def on_log(self, metrics: Mapping[str, float]) -> None:
            if "loss" in metrics:
                self.losses.append(metrics["loss"])

        @hookimpl(tryfirst=True)
        def on_train_end(self) -> None:
            self.syncs.watch(False)
            assert self.clock is not None
            self.clock.step(tokens=self.tokens)
            findings.update(self.clock.findings(), loss=self.losses)
            findings.update(device_syncs=self.syncs.count / self.steps, device_syncs_by_place=self.syncs.seen)

    return Timed()


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Run the recipe."""
    import torch

    from hooktrain import Trainer, load

    torch.set_num_threads(given["threads"])
    findings: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        recipe = {**given["recipe"], "run_dir": str(Path(folder) / "run"), "console": {"enabled": False}}
        made, host = load(recipe, plugins=[_plugin(given, findings)])
        Trainer(made, host).run()
    return findings


if __name__ == "__main__":
    drive(measure, "torch", "transformers", "hooktrain", "hooktrain-sft", "hooktrain-liger", "liger-kernel")
