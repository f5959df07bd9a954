"""Driver of hooktrain, through a recipe.

The specification: ``recipe`` (without ``run_dir``), ``threads``, optionally ``cores``, and ``do``: ``train``;
``pack``, which writes the micro-batches of the first epoch to ``packs`` in the order in which they would be trained, so
that a hand-written loop gets exactly the same; ``prepare``, which stops before the model is loaded; or ``export``,
which loads the model and saves it as a Hugging Face folder.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hooktrain.bench.driver import StepClock, drive

# torch and hooktrain are imported inside functions, because they belong to the time and memory that are measured


class _Enough(Exception):
    """Raised to end a run when everything is measured."""


def _plugin(given: dict[str, Any], findings: dict[str, Any]) -> object:
    from hooktrain import hookimpl

    class Timed:
        """Times each step at its log line, which has waited for the device and comes last in a step."""

        def __init__(self) -> None:
            self.clock = StepClock()
            self.before = {"tokens": 0.0, "supervised_tokens": 0.0}
            self.computed = 0

        @hookimpl(trylast=True)
        def on_train_start(self) -> None:
            self.clock.start()

        @hookimpl
        def on_step_start(self, batches: Sequence[Mapping[str, Any]]) -> None:
            self.computed = sum(batch["input_ids"].numel() for batch in batches)

        @hookimpl(trylast=True)
        def on_log(self, metrics: Mapping[str, float]) -> None:
            done = {name: metrics[name] - before for name, before in self.before.items()}
            self.clock.step(
                tokens=done["tokens"],
                computed=self.computed,
                supervised=done["supervised_tokens"],
                loss=metrics["loss"],
            )
            self.before = {name: metrics[name] for name in self.before}

        @hookimpl
        def on_train_end(self) -> None:
            findings.update(self.clock.findings())

    class Preparing:
        """Times the preparation, and ends the run before the model is loaded."""

        @hookimpl(wrapper=True)
        def make_data(self) -> Iterator[None]:
            began = time.perf_counter()
            data = yield
            findings["prepare_seconds"] = time.perf_counter() - began
            return data

        @hookimpl(tryfirst=True)
        def make_model(self) -> Any:
            raise _Enough

    class Exporting:
        """Saves what was loaded, without training."""

        @hookimpl
        def run_train(self, trainer: Any) -> Any:
            trainer.request_stop("there is nothing to train")
            return trainer.state

    kinds: dict[str, type] = {"train": Timed, "export": Exporting, "prepare": Preparing, "pack": Preparing}
    return kinds[given["do"]]()


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Run the recipe."""
    import torch

    from hooktrain import Trainer
    from hooktrain.training.load import load

    torch.set_num_threads(given["threads"])
    if "cores" in given:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given["cores"]])
    findings: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder) / "compiled")  # each run compiles anew
        recipe = {**given["recipe"], "run_dir": str(Path(folder) / "run"), "console": {"enabled": False}}
        made, host = load(recipe, plugins=[_plugin(given, findings)])
        trainer = Trainer(made, host)
        try:
            trainer.run()
        except _Enough:
            findings["report"] = dict(trainer.data.report)
        if given["do"] == "pack":
            packs = [dict(batch) for window in trainer.train_batches for batch in window]
            for pack in packs:
                pack.setdefault("tokens", pack["input_ids"].numel())
            torch.save(packs, given["packs"])
    return findings


if __name__ == "__main__":
    drive(measure, "torch", "transformers", "hooktrain", "hooktrain-sft", "datasets")
