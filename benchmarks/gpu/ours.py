"""hooktrain on a GPU, driven through a recipe; steps are timed by events, and waits of the host are counted.

The specification: ``recipe`` (without ``run_dir``), ``threads``, and ``waits``: whether to count, between log lines,
the operations that make the host wait for the device, as ``torch.cuda.set_sync_debug_mode`` reports them. Times are
worth nothing then.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hooktrain.bench.driver import StepClock, drive

# torch and hooktrain are imported inside functions: the peak of memory and the time belong to what is measured


class Waits:
    """Counts what makes the host wait for the device, while it is told to look."""

    def __init__(self) -> None:
        self.count = 0
        self.seen: dict[str, int] = {}

    def begin(self) -> None:
        """Hear of every one, however often it comes from the same place."""
        warnings.simplefilter("always")
        warnings.showwarning = self._heard  # type: ignore[assignment]

    def _heard(self, message: Any, category: Any, filename: str, number: int, *more: Any) -> None:
        if "synchronizing CUDA operation" in str(message):
            self.count += 1
            place = f"{Path(filename).name}:{number}"
            self.seen[place] = self.seen.get(place, 0) + 1

    def look(self, look: bool) -> None:
        """Whether those that follow count."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn" if look else "default")


def _plugin(given: dict[str, Any], findings: dict[str, Any]) -> object:
    from hooktrain import Trainer, hookimpl

    class Timed:
        """Times from one step's start to the next one's; no step waits for the device because of it."""

        def __init__(self) -> None:
            self.clock: StepClock | None = None
            self.waits = Waits()
            self.tokens = self.steps = 0
            self.losses: list[float] = []

        @hookimpl
        def on_train_start(self) -> None:
            if given["waits"]:
                self.waits.begin()

        @hookimpl(tryfirst=True)
        def on_step_start(self, batches: Sequence[Mapping[str, Any]]) -> None:
            if self.clock is None:
                self.clock = StepClock()
            else:
                self.clock.step(tokens=self.tokens)
            self.tokens = sum(int(batch.get("tokens", batch["input_ids"].numel())) for batch in batches)
            self.waits.look(given["waits"])

        @hookimpl(trylast=True)
        def on_step_end(self, trainer: Trainer) -> None:
            self.steps += 1
            if trainer.global_step % trainer.recipe.log_interval == 0:
                self.waits.look(False)  # a log line is where the host may wait

        @hookimpl(trylast=True)
        def on_log(self, metrics: Mapping[str, float]) -> None:
            if "loss" in metrics:
                self.losses.append(metrics["loss"])

        @hookimpl(tryfirst=True)
        def on_train_end(self) -> None:
            self.waits.look(False)
            assert self.clock is not None
            self.clock.step(tokens=self.tokens)
            findings.update(self.clock.findings(), loss=self.losses)
            findings.update(host_waits=self.waits.count / self.steps, waited_at=self.waits.seen)

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
