"""Runs of the checked plugin in processes of their own, and the results that two of them are compared by."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hooktrain.compare import digest
from hooktrain.markers import hookimpl
from hooktrain.testing.plugin_checks.plugin_reference import Spec, prepared
from hooktrain.training.trainer import Trainer
from hooktrain.types import Batch

__all__ = ["run", "unplain"]


class Results:
    """Records the results of a run, without touching a random state."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.rows: dict[int, str] = {}
        self.metrics: dict[int, dict[str, float]] = {}
        self.saved: list[str] = []
        self.found: dict[str, Any] = {}

    @hookimpl(tryfirst=True)
    def on_step_start(self, trainer: Trainer, batches: Sequence[Batch]) -> None:
        self.rows[trainer.global_step + 1] = digest(list(batches))

    @hookimpl
    def on_log(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        line = {name: value for name, value in metrics.items() if name not in trainer.meter.times}
        self.metrics.setdefault(int(metrics["step"]), {}).update(line)

    @hookimpl
    def on_checkpoint_start(self, trainer: Trainer) -> None:
        self.found["state when saved"] = _copy(trainer.host.collect_states(trainer).get(self.name))

    @hookimpl
    def on_checkpoint_end(self, trainer: Trainer, path: Path) -> None:
        if any(engine.can_load(path) for engine in trainer.checkpoint_engines):
            self.saved.append(str(path))

    @hookimpl
    def on_resume_end(self, trainer: Trainer) -> None:
        self.found["state when restored"] = _copy(trainer.host.collect_states(trainer).get(self.name))

    @hookimpl(trylast=True)
    def on_train_end(self, trainer: Trainer) -> None:
        states = trainer.host.collect_states(trainer)
        problems = unplain(states.get(self.name), "state")
        if problems:
            self.found["not plain"], states = problems, {}
        trained = trainer.strategy.trained_state(trainer.trained, trainer.optimizer)
        weights, tensors = (
            {f"{part.name}[{part.start}]" if part.start else part.name: _copy(part.values) for part in parts}
            for parts in (trained.model, trained.optimizer)
        )
        counters = {key: value for key, value in vars_of(trainer.state).items() if key != "metrics"}
        self.found |= {
            "weights": weights,
            "optimizer's tensors": tensors,
            "optimizer's settings": _copy(dict(trained.rest)),
            "schedule": _copy(trainer.scheduler.state_dict()),
            "states of plugins": _copy(states),
            "random states": random_states(),
            "counters": counters,
        }


def run(
    spec: Spec,
    variation: str,
    folder: str,
    overrides: Mapping[str, Any] = {},
    resume_from: str | None = None,
    plugins: Sequence[object] = (),
) -> dict[str, Any]:
    """Train in this process with more plugins, and return the results to compare: plain values and tensors."""
    torch.set_num_threads(1)
    values = {"run_dir": folder, "train_iters": spec.steps, "epochs": None, "checkpoint": [], **overrides}
    results = Results()
    recipe, host, results.name = prepared(spec, variation, results, *plugins, overrides=values)
    trainer = Trainer(recipe, host, resume_from=Path(resume_from) if resume_from else None)
    trainer.run()
    return {
        "sequences of each step": results.rows,
        "logged numbers": {f"step {step}": line for step, line in results.metrics.items()},
        "saved": results.saved,
        "name": results.name,
        "hooks": host.records[results.name].hooks if results.name else [],
        **results.found,
    }


def vars_of(state: Any) -> dict[str, Any]:
    """Return the fields of a trainer's state."""
    return {name: getattr(state, name) for name in type(state).__annotations__}


def random_states() -> dict[str, str]:
    """Return digests of all states that random numbers are drawn from."""
    states = {"torch": digest(torch.get_rng_state()), "python": digest(random.getstate())}
    if "numpy" in sys.modules:
        states["numpy"] = repr(sys.modules["numpy"].random.get_state())
    return states


def _copy(value: Any) -> Any:
    """Copy plain values; anything else becomes text."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copy(item) for item in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else repr(value)


def unplain(value: Any, where: str) -> list[str]:
    """List what a state holds besides JSON values and tensors, and where."""
    if isinstance(value, Tensor) or type(value) in (bool, int, float, str, type(None)):
        return []
    if isinstance(value, Mapping):
        odd = [f"{where}: the key {key!r} is {_a(key)}" for key in value if not isinstance(key, str)]
        return odd + [found for key, item in value.items() for found in unplain(item, f"{where}[{key!r}]")]
    if type(value) in (list, tuple):
        return [found for number, item in enumerate(value) for found in unplain(item, f"{where}[{number}]")]
    return [f"{where} is {_a(value)}"]


def _a(value: Any) -> str:
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"a {name}"
