"""Which checkpoint engines are to save at a given moment."""

from __future__ import annotations

from collections.abc import Sequence

from hooktrain.parts import CheckpointEngine
from hooktrain.state import TrainerState

__all__ = ["Saving"]


class Saving:
    """Remembers at which step each engine saved, so that no step is saved twice."""

    def __init__(self) -> None:
        self.saved_at: dict[int, int] = {}

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

    def _is_due(self, engine: CheckpointEngine, reason: str, state: TrainerState) -> bool:
        config = engine.config
        if reason == "end":
            # an export puts its last result elsewhere than the ones along the way; others skip what they have
            return bool(config.save_end_of_training)
        if self.saved_at.get(id(engine)) == state.global_step:
            return False
        if reason == "epoch":
            return bool(config.save_every_n_epochs and state.epoch % config.save_every_n_epochs == 0)
        return reason == "request" or bool(
            config.save_every_n_steps and state.global_step % config.save_every_n_steps == 0
        )
