"""``hooktrain train --overfit`` and ``--fast-dev-run``: short runs that show whether a recipe works."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hooktrain.errors import HooktrainError
from hooktrain.training.rank_notes import NOTES
from hooktrain.types import World

if TYPE_CHECKING:
    from hooktrain.training.trainer import Trainer

__all__ = ["fast_dev_run", "overfit_recipe", "overfit_result"]

OVERFIT_STEPS = 100
"""Optimizer steps of ``--overfit`` where the recipe has no ``train_iters``."""
_LEARNED = 0.1
"""Share of the first loss below which the last one counts as near zero."""
_LAUNCH = (NOTES, "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_STEP_ID", "MASTER_ADDR", "MASTER_PORT")
"""Variables that tell the launches of several ranks apart."""


def overfit_recipe(raw: Mapping[str, Any], batches: int, name: str) -> dict[str, Any]:
    """Return a recipe that trains on the same few micro-batches and saves nothing, in a run directory of its own.

    Args:
        raw: the recipe.
        batches: micro-batches of each rank.
        name: of the recipe.
    """
    from hooktrain.training.short_runs import LENGTH_KEYS

    made = {key: value for key, value in raw.items() if key not in LENGTH_KEYS}
    made["train_iters"] = made["eval_interval"] = raw.get("train_iters") or OVERFIT_STEPS  # evaluated once
    limits = {"limit_train_batches": batches, "limit_eval_batches": batches, "checkpoint": []}
    given = raw.get("run_dir")  # one that is no text is refused later, as it stands
    own = f"{_run_dir(raw, name)}-overfit" if given is None or isinstance(given, str) else given
    return {**made, **limits, "run_dir": own}


def overfit_result(trainer: Trainer) -> str:
    """Return a sentence on whether the loss of the same micro-batches has gone to zero."""
    losses = [line["loss"] for line in trainer.history if "loss" in line]
    if not losses:
        return "overfit: no loss was logged; write a log_interval below the number of steps"
    steps, rows = trainer.global_step, len(trainer.data.train)
    went = f"overfit: the loss of {rows} sequences went from {losses[0]:.4g} to {losses[-1]:.4g} in {steps} steps"
    if losses[-1] <= _LEARNED * losses[0]:
        return f"{went}, near zero: the model learns them"
    return (
        f"{went}, which is not near zero; look at what is trained (`hooktrain data RECIPE --show 3`), raise"
        " optimizer.lr, or give more steps with -o train_iters=500"
    )


def fast_dev_run(raw: Mapping[str, Any], steps: int, source: Path, switches: Sequence[str]) -> None:
    """Train, evaluate, save, resume and export in a folder that is removed at the end.

    Args:
        raw: the recipe.
        steps: optimizer steps before the resume, and as many after it.
        source: the recipe's file.
        switches: the words for plugins.

    Raises:
        HooktrainError: whatever is wrong with the recipe, its data or its plugins.
    """
    world = World.from_environment()
    folder = _scratch(raw, source.stem, world)
    if world.is_main:
        shutil.rmtree(folder, ignore_errors=True)  # of ranks that were killed, and had the same launcher's id
    recipe = _short(raw, steps, folder)
    try:
        _say(world, f"trains {steps} steps, evaluates and saves")
        first = _run({**recipe, "exit_iteration": steps}, source, switches, None)
        _require_steps(first, steps)
        path = next(filter(None, (engine.latest() for engine in first.checkpoint_engines)), None)
        if path is None:
            raise HooktrainError(f"fast-dev-run: no checkpoint to resume from was saved at step {steps}")
        _say(world, f"resumes from {path.name}, trains {steps} more, saves and exports")
        second = _run(recipe, source, switches, path)
        _require_steps(second, 2 * steps)
        sets = ", ".join(second.data.evaluation) or "nothing, as there is no evaluation set"
        _say(world, f"done: trained {second.global_step} steps, evaluated {sets}, saved, resumed and exported")
        _say(world, f"removes {folder}")
    finally:
        if world.is_main:
            shutil.rmtree(folder, ignore_errors=True)


def _scratch(raw: Mapping[str, Any], name: str, world: World) -> Path:
    """Return the folder of this trial, which is the same on all of its ranks, and that of no other trial."""
    if world.world_size == 1:
        mark = uuid.uuid4().hex
    else:  # nothing connects the ranks yet: what their launcher gave them all tells its trials apart
        mark = hashlib.sha256("\n".join(os.environ.get(each, "") for each in _LAUNCH).encode()).hexdigest()
    return Path(f"{_run_dir(raw, name)}.fast-dev-run-{mark[:12]}")


def _require_steps(trainer: Trainer, steps: int) -> None:
    """End the process where a signal or a plugin has stopped a run before its last step."""
    if trainer.global_step >= steps:
        return
    said = f"fast-dev-run: ended at step {trainer.global_step}, expected {steps}: {trainer.state.stop_reason}"
    _say(trainer.world, said)
    sys.exit(trainer.exit_status or 1)


def _short(raw: Mapping[str, Any], steps: int, folder: Path) -> dict[str, Any]:
    """Return the recipe for a few steps in a folder, with each of its checkpoint engines and one to resume from."""
    from hooktrain.training.short_runs import LENGTH_KEYS

    made = {key: value for key, value in raw.items() if key not in LENGTH_KEYS}
    given = raw.get("checkpoint") or []
    several = given if isinstance(given, list) else [given]
    entries = [each if isinstance(each, Mapping) else {"type": each} for each in several]
    if not any(each.get("type", "full") == "full" for each in entries):
        entries.insert(0, {"type": "full"})
    saves = {"save_every_n_steps": steps, "save_every_n_epochs": 0, "save_end_of_training": True, "auto_resume": False}
    made["checkpoint"] = [
        {**each, **saves, "output_dir": str(folder / f"checkpoint-{number}"), **_without_push(each)}
        for number, each in enumerate(entries)
    ]
    more = {"train_iters": 2 * steps, "eval_interval": steps, "eval_delay": 0, "limit_eval_batches": steps}
    return {**made, **more, "log_interval": 1, "run_dir": str(folder / "run")}


def _without_push(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"push_to": None} if "push_to" in entry else {}


def _run(recipe: Mapping[str, Any], source: Path, switches: Sequence[str], resume: Path | None) -> Trainer:
    from hooktrain.training.load import load
    from hooktrain.training.trainer import Trainer

    made, host = load(recipe, switches=list(switches), source=str(source), name=source.stem)
    trainer = Trainer(made, host, resume_from=resume)
    trainer.run_record.keeps_folder = False
    trainer.run()
    return trainer


def _run_dir(raw: Mapping[str, Any], name: str) -> Path:
    given = raw.get("run_dir")
    return Path(given if given and isinstance(given, str) else Path("runs") / name)


def _say(world: World, text: str) -> None:
    if world.is_main:
        click.echo(f"fast-dev-run: {text}")
