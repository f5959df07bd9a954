"""Steps after which a run evaluates or saves: every so many, at the end of epochs, or after fractions of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hooktrain.errors import HooktrainError
from hooktrain.protocols import PlacedLoader

if TYPE_CHECKING:
    from hooktrain.training.trainer import Trainer

__all__ = ["ends_share", "evaluation_due", "evaluation_steps", "require_countable"]


def evaluation_due(trainer: Trainer, step: int) -> bool:
    """Whether ``eval_interval`` and ``eval_delay`` have an evaluation after a step that has been counted."""
    interval, delay = trainer.recipe.eval_interval, trainer.recipe.eval_delay
    if not interval or step < delay:
        return False
    if interval == "epoch":
        return trainer.state.sequences >= len(trainer.data.train)
    if interval >= 1:
        return step % interval == 0
    return ends_share(interval, step, len(trainer.loader))


def evaluation_steps(trainer: Trainer) -> int:
    """Return the steps between two evaluations, for whoever counts in steps; 0 where only the end is evaluated."""
    interval = trainer.recipe.eval_interval
    share = 1 if interval == "epoch" else interval
    return int(interval) if interval != "epoch" and interval >= 1 else round(share * len(trainer.loader))


def ends_share(epochs: float, step: int, per_epoch: int) -> bool:
    """Whether a step is the last one of a number of epochs, such as half of one, or of a multiple of it."""
    every = epochs * per_epoch
    return int(step / every + 1e-9) > int((step - 1) / every + 1e-9)


def require_countable(trainer: Trainer) -> None:
    """Refuse fractions of an epoch where the steps of an epoch are not known.

    Raises:
        HooktrainError: naming the setting.
    """
    if not isinstance(trainer.loader, PlacedLoader):
        return
    settings = {"eval_interval": trainer.recipe.eval_interval}
    for number, engine in enumerate(trainer.checkpoint_engines):
        settings[f"checkpoint[{number}].save_every_n_epochs"] = engine.config.save_every_n_epochs
    for name, value in settings.items():
        if isinstance(value, float) and value % 1:
            raise HooktrainError(
                f"{name}: given {value:g}, a fraction of an epoch, but the steps of an epoch of a streaming source are"
                " not known; write a number of steps"
            )
