"""Checkpoints in DeepSpeed's own format, for its tools and for runs without hooktrain."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from hooktrain import CheckpointConfig, CheckpointError, World

if TYPE_CHECKING:
    from hooktrain import Trainer

__all__ = ["DeepSpeedCheckpoint", "DeepSpeedCheckpointConfig"]


@attrs.frozen(kw_only=True)
class DeepSpeedCheckpointConfig(CheckpointConfig):
    """DeepSpeed's own folders, ``global_stepN``, with ``latest`` and ``zero_to_fp32.py`` next to them.

    A run of hooktrain resumes from ``full``: DeepSpeed's files hold neither the position in the data nor random states,
    and reading them runs code that they contain.
    """


class DeepSpeedCheckpoint:
    """Has DeepSpeed's engine save to a hidden folder, and renames it when it is complete.

    Args:
        config: when and where to save.
        run_dir: the run's folder; checkpoints go to ``deepspeed`` in it when the config has no ``output_dir``.
        world: this process and how many there are.

    Raises:
        CheckpointError: when they cannot be written there, or ``auto_resume`` is set.
    """

    def __init__(self, config: DeepSpeedCheckpointConfig, run_dir: Path, world: World) -> None:
        self.config, self.world = config, world
        self.output_dir = config.output_dir or run_dir / "deepspeed"
        if config.auto_resume:
            raise CheckpointError(
                "checkpoint (type: deepspeed): given auto_resume, but a run cannot resume from it; add a checkpoint of"
                " 'type: full' with auto_resume"
            )
        if config.enabled and world.is_main:
            try:
                self.output_dir.mkdir(parents=True, exist_ok=True)
            except OSError as problem:
                raise CheckpointError(
                    f"checkpoint.output_dir: '{self.output_dir}' cannot be written ({problem.strerror}); give another"
                    " folder"
                ) from problem

    def save(self, trainer: Trainer) -> Path:
        strategy: Any = trainer.strategy
        tag = f"global_step{trainer.global_step}"
        temporary, target = self.output_dir / f".saving-{tag}", self.output_dir / tag
        problem = ""
        try:
            strategy.save_own(temporary, tag)
            if self.world.is_main:
                self._publish(temporary, target)
        except OSError as raised:
            problem = f"{raised.strerror or raised}"
        for rank, text in enumerate(strategy.gather_objects(problem)):
            if text:
                raise CheckpointError(
                    f"{target}: rank {rank} could not save it: {text}; make room, or give another folder"
                )
        return target

    def _publish(self, temporary: Path, target: Path) -> None:
        shutil.rmtree(target, ignore_errors=True)  # an earlier run's
        os.replace(temporary / target.name, target)
        for path in temporary.iterdir():
            os.replace(path, self.output_dir / path.name)
        shutil.rmtree(temporary, ignore_errors=True)

    def results(self) -> list[Path]:
        folders = [path for path in self.output_dir.glob("global_step*") if path.name[11:].isdigit()]
        return sorted(folders, key=lambda path: -int(path.name[11:]))

    def clean(self) -> None:
        for path in self.output_dir.glob(".saving-global_step*"):
            shutil.rmtree(path, ignore_errors=True)

    def latest(self) -> None:
        return None

    def can_load(self, path: Path) -> bool:
        return False

    def load(self, trainer: Trainer, path: Path) -> None:
        raise CheckpointError(f"{path}: a run cannot resume from it; resume from a checkpoint of 'type: full'")
