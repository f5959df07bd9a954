"""What callbacks see of the run: loaders, names of metrics, and what the recipe has due at a step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hooktrain import Batch, Trainer

__all__ = [
    "EvalBatches",
    "TrainBatches",
    "epoch_of",
    "eval_sizes",
    "for_lightning",
    "for_transformers",
    "is_spread",
    "micro_batches_of_epoch",
    "saves_epoch",
    "saves_step",
    "says_when_it_steps",
]


class TrainBatches:
    """The training data as a loader of this rank's micro-batches; iterating does not disturb the run."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.dataset, self.batch_size = trainer.data.train, trainer.recipe.micro_batch_size

    def __len__(self) -> int:
        return micro_batches_of_epoch(self._trainer)

    def __iter__(self) -> Iterator[Batch]:
        for _, batches in self._trainer.loader.windows(self._trainer.state.epoch, 0):
            yield from batches


class EvalBatches:
    """One evaluation set, or all of them, as a loader of this rank's micro-batches."""

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
    """Micro-batches of this rank in an epoch."""
    return math.ceil(len(trainer.data.train) / (trainer.recipe.micro_batch_size * trainer.data_world.world_size))


def eval_sizes(trainer: Trainer) -> dict[str, int]:
    """Micro-batches of this rank in each evaluation set."""
    at_once = (trainer.recipe.eval_micro_batch_size or trainer.recipe.micro_batch_size) * trainer.data_world.world_size
    return {name: math.ceil(len(rows) / at_once) for name, rows in trainer.data.evaluation.items()}


def epoch_of(trainer: Trainer) -> float:
    """Where the run is, in epochs."""
    return trainer.state.epoch + trainer.state.sequences / len(trainer.data.train)


def for_transformers(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics under the names of transformers: ``lr`` is ``learning_rate``, ``eval/<set>/loss`` is ``eval_<set>_loss``,
    and ``eval_loss`` too where there is one set.
    """
    made: dict[str, float] = {}
    sets = {name.split("/")[1] for name in metrics if _is_measured(name)}
    other = {"lr": "learning_rate", "tokens": "num_input_tokens_seen"}
    for name, value in metrics.items():
        if _is_measured(name):
            _, of, what = name.split("/", 2)
            made[f"eval_{of}_{what}"] = value
            if len(sets) == 1:
                made[f"eval_{what}"] = value
        elif name != "step":
            made[other.get(name, name)] = value
    return made


def for_lightning(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics under hooktrain's own names, and under those that Lightning users give them: ``train_loss``,
    ``val_<set>_loss``, and ``val_loss`` where there is one set.
    """
    made = dict(metrics)
    sets = {name.split("/")[1] for name in metrics if _is_measured(name)}
    for name, value in metrics.items():
        if _is_measured(name):
            _, of, what = name.split("/", 2)
            made[f"val_{of}_{what}"] = value
            if len(sets) == 1:
                made[f"val_{what}"] = value
        elif name == "loss":
            made["train_loss"] = value
    return made


def _is_measured(name: str) -> bool:
    return name.startswith("eval/") and name.count("/") >= 2


def saves_step(trainer: Trainer) -> bool:
    """Whether a checkpoint engine is to save after this step."""
    configs = (engine.config for engine in trainer.checkpoint_engines if engine.config.enabled)
    return any(c.save_every_n_steps and trainer.global_step % c.save_every_n_steps == 0 for c in configs)


def saves_epoch(trainer: Trainer) -> bool:
    """Whether a checkpoint engine is to save at the end of this epoch."""
    configs = (engine.config for engine in trainer.checkpoint_engines if engine.config.enabled)
    return any(c.save_every_n_epochs and (trainer.state.epoch + 1) % c.save_every_n_epochs == 0 for c in configs)


def says_when_it_steps(trainer: Trainer) -> bool:
    """Whether the optimizer can be watched by hooks on it: after clipping, and before gradients go."""
    import torch

    optimizer = trainer.optimizer
    if not (isinstance(optimizer, torch.optim.Optimizer) and hasattr(optimizer, "_optimizer_step_pre_hooks")):
        return False
    # one that was given parameters of its own, as under ZeRO, is stepped for each group of them
    own = {id(parameter) for parameter in trainer.strategy.unwrap(trainer.model).parameters()}
    return all(id(one) in own for group in optimizer.param_groups for one in group["params"])


def is_spread(module: Any) -> bool:
    """Whether ranks hold the weights together, as under ZeRO-3 and FSDP."""
    return any(hasattr(one, "ds_id") or hasattr(one, "full_tensor") for one in module.parameters())
