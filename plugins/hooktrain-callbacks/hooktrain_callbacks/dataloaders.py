"""The run's data as dataloaders that callbacks can measure and iterate over."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hooktrain import Batch, Trainer

__all__ = ["EvalBatches", "TrainBatches", "epoch_of", "eval_sizes", "micro_batches_of_epoch"]


class TrainBatches:
    """Loader of this rank's training micro-batches; iterating does not disturb the run."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.dataset, self.batch_size = trainer.data.train, trainer.recipe.micro_batch_size

    def __len__(self) -> int:
        return micro_batches_of_epoch(self._trainer)

    def __iter__(self) -> Iterator[Batch]:
        for _, batches in self._trainer.loader.windows(self._trainer.state.epoch, 0):
            yield from batches


class EvalBatches:
    """Loader of this rank's micro-batches of one evaluation set or several."""

    def __init__(self, trainer: Trainer, *names: str) -> None:
        self._trainer, self._names = trainer, names
        self.dataset = trainer.data.evaluation[names[0]]
        self.batch_size = trainer.recipe.eval_micro_batch_size or trainer.recipe.micro_batch_size

    def __len__(self) -> int:
        sizes = eval_sizes(self._trainer)
        return sum(sizes[name] for name in self._names)

    def __iter__(self) -> Iterator[Batch]:
        for name in self._names:
            yield from self._trainer.eval_batches(name)


def micro_batches_of_epoch(trainer: Trainer) -> int:
    """Return the number of this rank's micro-batches in an epoch."""
    return math.ceil(len(trainer.data.train) / (trainer.recipe.micro_batch_size * trainer.data_world.world_size))


def eval_sizes(trainer: Trainer) -> dict[str, int]:
    """Return the number of this rank's micro-batches in each evaluation set."""
    at_once = (trainer.recipe.eval_micro_batch_size or trainer.recipe.micro_batch_size) * trainer.data_world.world_size
    return {name: math.ceil(len(rows) / at_once) for name, rows in trainer.data.evaluation.items()}


def epoch_of(trainer: Trainer) -> float:
    """Return the progress of the run in epochs."""
    return trainer.state.epoch + trainer.state.sequences / len(trainer.data.train)
