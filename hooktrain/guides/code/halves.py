"""A checkpoint engine that writes the weights in half precision."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import torch
from hooktrain import (
    CheckpointConfig,
    CheckpointError,
    Recipe,
    Trainer,
    World,
    hookimpl,
)
from torch import Tensor


@attrs.frozen(kw_only=True)
class HalvesConfig(CheckpointConfig):
    """Settings of ``checkpoint: {type: halves}``."""


@hookimpl
def register_configs() -> Mapping[str, Mapping[str, type]]:
    return {"checkpoint": {"halves": HalvesConfig}}


@hookimpl
def make_checkpoint_engine(
    config: object, run_dir: Path, world: World, recipe: Recipe
) -> Halves | None:
    if not isinstance(config, HalvesConfig):
        return None  # another plugin's
    return Halves(config, run_dir)


class Halves:
    def __init__(self, config: HalvesConfig, run_dir: Path) -> None:
        self.config = config
        folder = config.output_dir or run_dir / "halves"
        self.output_dir = folder.expanduser().absolute()

    def save(self, trainer: Trainer) -> Path | None:
        weights = trainer.strategy.full_state_dict(trainer.model)
        name = f"step-{trainer.global_step:08d}.pt"
        path, problem = self.output_dir / name, ""
        if trainer.world.is_main:  # the others got no weights
            try:
                self._write(path, weights)
            except OSError as error:
                problem = f"{path}: {error.strerror}; make room"
        # every rank learns of it, and reads the file when it is there
        found = trainer.strategy.gather_objects(problem)
        if any(found):
            raise CheckpointError(next(filter(None, found)))
        return path

    def _write(self, path: Path, weights: Mapping[str, Tensor]) -> None:
        halves = {name: value.half() for name, value in weights.items()}
        self.output_dir.mkdir(parents=True, exist_ok=True)
        written = path.with_suffix(".writing")
        with written.open("wb") as file:
            torch.save(halves, file)
            file.flush()
            os.fsync(file.fileno())
        written.replace(path)  # whole, or not there

    def results(self) -> Sequence[Path]:
        return sorted(self.output_dir.glob("step-*.pt"), reverse=True)

    def clean(self) -> None:
        for path in self.output_dir.glob("step-*.writing"):
            path.unlink()  # of a save that was interrupted

    def latest(self) -> Path | None:
        return None  # no run can resume from these

    def can_load(self, path: Path) -> bool:
        return False

    def load(self, trainer: Trainer, path: Path) -> None:
        raise CheckpointError(
            f"{path}: has weights alone, expected a whole checkpoint;"
            " resume from one of an entry with 'type: full'"
        )
