"""Steps without an update: how many there may be in a row, and in a run that counts as one that has trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hooktrain.errors import NonFiniteError
from hooktrain.protocols import DatasetDefaults, LoaderDefaults, member

if TYPE_CHECKING:
    from hooktrain.training.trainer import Trainer
    from hooktrain.types import LossSum

__all__ = ["count_skipped", "require_trained", "require_updates", "uncounted", "untrained"]

_NEARLY_ALL = 0.9
"""Share of a run's steps without an update from which on it has trained nothing worth the name."""
_NAMED = 6
"""Rows of a step that an error names."""


def count_skipped(trainer: Trainer, stepped: bool, sequences: int) -> None:
    """Count a step that did not update the weights.

    Args:
        trainer: whose counters include the step.
        stepped: whether the step updated them.
        sequences: those of the step, over all ranks.
    """
    state = trainer.state
    if stepped:
        state.consecutive_skipped_steps = 0
        return
    state.skipped_steps += 1
    state.consecutive_skipped_steps += 1
    if state.consecutive_skipped_steps == 1:
        why = "whose gradients were not finite" if trainer.denominator else "in which nothing was supervised"
        why = trainer.skip_reason or why
        state.first_skipped = f"step {state.global_step}, {why}, with {_examples(trainer, sequences)}"


def require_updates(trainer: Trainer) -> None:
    """Refuse to continue after too many steps in a row without an update.

    Raises:
        NonFiniteError: naming the first of them and its examples.
    """
    state, limit = trainer.state, trainer.recipe.max_skipped_steps
    if 0 < limit <= state.consecutive_skipped_steps:
        raise NonFiniteError(
            f"step {state.global_step}: the last {state.consecutive_skipped_steps} steps updated no weight, expected"
            f" fewer than max_skipped_steps ({limit}) in a row; the first was {state.first_skipped}; look at these,"
            " lower optimizer.lr, or write a larger max_skipped_steps (0 is no limit)"
        )


def require_trained(trainer: Trainer) -> None:
    """Refuse to call a run well in which nearly no step updated the weights.

    Raises:
        NonFiniteError: saying how many did not, and naming one.
    """
    failed = untrained(trainer)
    if failed is not None:
        raise failed


def untrained(trainer: Trainer) -> NonFiniteError | None:
    """Return the error for a run in which nearly no step updated the weights; None for any other.

    A run that a signal has ended is no success anyway, and is resumed.
    """
    state = trainer.state
    trains = not state.global_step or state.skipped_steps < _NEARLY_ALL * state.global_step
    if trains or trainer.exit_status:
        return None
    return NonFiniteError(
        f"step {state.global_step}: {state.skipped_steps} of {state.global_step} steps updated no weight, expected few,"
        f" so the model is not trained, and not exported at the end; one was {state.first_skipped}; look at these,"
        " lower optimizer.lr, or compute in bf16 or fp32 where it is fp16"
    )


def _examples(trainer: Trainer, sequences: int) -> str:
    """Return the names of the examples of the step that has just ended, over all ranks."""
    state = trainer.state
    start = state.sequences - sequences
    rows = member(trainer.loader, LoaderDefaults, "rows_of")(state.epoch, start, sequences)
    if not rows:
        return f"sequences {start} to {state.sequences - 1} of epoch {state.epoch}"
    name = member(trainer.data.train, DatasetDefaults, "row_name")
    named = "; ".join(name(row) for row in rows[:_NAMED])
    return named + (f"; and {len(rows) - _NAMED} more" if len(rows) > _NAMED else "")


def uncounted(loss: LossSum) -> LossSum:
    """Return a loss that adds nothing, as that of a padding batch, with the graph that other ranks wait for."""
    return loss._replace(total=loss.total * 0, sums={name: value * 0 for name, value in loss.sums.items()})
