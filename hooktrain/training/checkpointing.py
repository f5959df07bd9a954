"""Choice of the checkpoint engines that are due, and the end of background saves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hooktrain.protocols import CheckpointEngine, CheckpointEngineDefaults, member
from hooktrain.training.random_state import unchanged_random_state
from hooktrain.types import TrainerState

if TYPE_CHECKING:
    from hooktrain.training.trainer import Trainer

__all__ = ["Saving"]


class Saving:
    """Remembers at which step each engine saved, so that no step is saved twice.

    Attributes:
        last: what was saved last in this run, and is whole; None before that.
    """

    def __init__(self) -> None:
        self.saved_at: dict[int, int] = {}
        self.last: Path | None = None

    def due(self, engines: Sequence[CheckpointEngine], reason: str, state: TrainerState) -> list[CheckpointEngine]:
        """The engines that save now.

        Args:
            engines: all of the run's.
            reason: ``step``, ``epoch``, ``end`` or ``request``.
            state: where the run is.
        """
        return [engine for engine in engines if engine.config.enabled and self._is_due(engine, reason, state)]

    def done(self, engines: Sequence[CheckpointEngine], state: TrainerState) -> None:
        """The engines have saved."""
        self.saved_at.update({id(engine): state.global_step for engine in engines})

    def collect(self, trainer: Trainer, *, wait: bool = False) -> None:
        """End the background saves that all ranks have written, and emit ``on_checkpoint_end`` for each. Collective.

        Args:
            trainer: whose engines.
            wait: for those that are still being written.
        """
        for engine in trainer.checkpoint_engines:
            with unchanged_random_state():  # a resumed run does not call them, or not at this step
                path = member(engine, CheckpointEngineDefaults, "finish")(trainer, wait)
                if path is not None:
                    self.last = path
                    trainer.hooks.on_checkpoint_end(trainer=trainer, path=path)

    def require_last(self, trainer: Trainer) -> None:
        """Refuse to call a run well whose last state was to be saved in the background and could not be.

        Raises:
            CheckpointError: on all ranks.
        """
        for engine in trainer.checkpoint_engines:
            step, problem = member(engine, CheckpointEngineDefaults, "unsaved") or (-1, None)
            if problem is not None and step == trainer.global_step:
                raise problem

    def _is_due(self, engine: CheckpointEngine, reason: str, state: TrainerState) -> bool:
        config = engine.config
        if reason == "end":
            # an export puts its last result elsewhere than the ones along the way; others skip what they have
            return bool(config.save_end_of_training)
        if self.saved_at.get(id(engine)) == state.global_step:
            return False
        if reason == "epoch":
            return bool(config.save_every_n_epochs and state.epoch % config.save_every_n_epochs == 0)
        if reason == "request" and state.stop_reason is not None and config.save_end_of_training:
            return False  # the end is next, and whoever waits for it would wait twice as long
        return reason == "request" or bool(
            config.save_every_n_steps and state.global_step % config.save_every_n_steps == 0
        )
