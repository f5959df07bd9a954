"""Ownership of the folders that checkpoints and exports go to: a lock while a run uses them, and the run's id.

Both lie next to the folder, as ``.checkpoints.lock`` and ``.checkpoints.owner.json``: an export is replaced as a whole,
and is copied and uploaded as it is.
"""

from __future__ import annotations

import json
import os
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooktrain.errors import CheckpointError, HooktrainError, failure_of
from hooktrain.protocols import CheckpointEngine, CheckpointEngineDefaults, ConfigDefaults, member
from hooktrain.training.run_files import write_whole
from hooktrain.training.run_lock import RunLock
from hooktrain.training.run_record import local_time

if TYPE_CHECKING:
    from hooktrain.training.trainer import Trainer

__all__ = ["claim_output_folders"]


def claim_output_folders(trainer: Trainer, resumed: Path | None) -> None:
    """Take the output folders of the run's checkpoint engines, and settle which run this is. Collective.

    A run continues the one whose folder it resumes from: with ``auto_resume``, or from a checkpoint in it. Any other
    run with results there is somebody else's.

    Args:
        trainer: with its checkpoint engines.
        resumed: the checkpoint that the run resumes from.

    Raises:
        CheckpointError: on all ranks, where a folder holds results of another run or is in use.
    """
    problem, id = "", ""
    if trainer.world.is_main:
        try:
            _claim(trainer, resumed)
        except HooktrainError as raised:
            problem = str(raised)
        except OSError as raised:
            problem = (
                f"'{raised.filename or trainer.run_dir}' cannot be written ({raised.strerror}); give another folder"
            )
        id = trainer.run_record.record.id
    problem, id = trainer.strategy.gather_objects([problem, id])[0]
    if problem:
        error = CheckpointError(problem)
        failure_of(error).rank = 0
        raise error
    trainer.run_record.record.id = id


def _claim(trainer: Trainer, resumed: Path | None) -> None:
    recorder = trainer.run_record
    engines = [
        (number, engine, folder)
        for number, engine in enumerate(trainer.checkpoint_engines)
        if engine.config.enabled and (folder := member(engine, CheckpointEngineDefaults, "output_dir")) is not None
    ]
    for number, _, folder in engines:
        lock = RunLock(Path(f"{_beside(folder)}.lock"), say=trainer.host.warn, key=_key(number), shown=folder)
        weakref.finalize(trainer, lock.release)
    above = () if resumed is None else resumed.resolve().parents
    resumable = [folder for _, engine, folder in engines if engine.config.auto_resume or folder.resolve() in above]
    continued = next((owner["run"] for folder in resumable if (owner := _owner(folder))), None)
    id = continued or recorder.record.id
    for number, engine, folder in engines:
        owner = _owner(folder)
        results = member(engine, CheckpointEngineDefaults, "results")()
        is_mine = owner.get("run") == id or (folder in resumable and not owner)
        if results and not is_mine and not member(engine.config, ConfigDefaults, "overwrite"):
            recorder.abandon()
            raise CheckpointError(_refusal(number, engine, folder, owner, results[0], trainer.run_dir))
    recorder.settle(continued, resumed)
    facts = {"run": id, "run_dir": str(trainer.run_dir), "name": recorder.record.name, "since": time.time()}
    for _, engine, folder in engines:
        if _owner(folder).get("run") != id:
            write_whole(Path(f"{_beside(folder)}.owner.json"), json.dumps(facts, indent=2))
        member(engine, CheckpointEngineDefaults, "clean")()


def _key(number: int) -> str:
    return f"checkpoint[{number}].output_dir"


def _refusal(
    number: int, engine: CheckpointEngine, folder: Path, owner: Mapping[str, Any], result: Path, run_dir: Path
) -> str:
    whose = f"the run {owner['run']}" if "run" in owner else "another run"
    if since := local_time(owner.get("since", 0)):
        whose += f" of {since}"
    exports = member(engine.config, ConfigDefaults, "exports")
    elsewhere = "run_dir" if run_dir in folder.parents else _key(number)
    remedy = "overwrite: true to replace it" if exports else "auto_resume: true to resume that run"
    return (
        f"{_key(number)}: '{folder}' holds results of {whose} ({result.name}), which this run would overwrite; write"
        f" {elsewhere}: <another folder> to keep both, or checkpoint[{number}].{remedy}"
    )


def _beside(folder: Path) -> Path:
    """The beginning of the names of a folder's lock and owner."""
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    if os.access(folder.parent, os.W_OK | os.X_OK):
        return folder.with_name(f".{folder.name}")
    return folder / f".{folder.name}"  # as where it is a mounted disk


def _owner(folder: Path) -> Mapping[str, Any]:
    """Who owns a folder; nothing where nobody does, or it cannot be read."""
    try:
        found = json.loads(Path(f"{_beside(folder)}.owner.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    kinds: dict[str, Any] = {"run": str, "run_dir": str, "name": str, "since": (int, float)}
    if not isinstance(found, Mapping) or not isinstance(found.get("run"), str):
        return {}
    return {name: found[name] for name, kind in kinds.items() if isinstance(found.get(name), kind)}
