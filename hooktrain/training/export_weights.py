"""Exports of other weights than those that are trained on, such as their averages."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from hooktrain.protocols import ConfigDefaults, member

if TYPE_CHECKING:
    from hooktrain.training.trainer import Trainer

__all__ = ["save_exports_within"]


def save_exports_within(
    trainer: Trainer, weights: AbstractContextManager[object]
) -> Generator[None, Sequence[Path], Sequence[Path]]:
    """Save checkpoints as ever, and then exports inside a context in which the model holds other weights. Collective.

    A wrapper of ``save_checkpoint`` is ``return (yield from save_exports_within(trainer, weights))``.

    Args:
        trainer: whose engines are due.
        weights: puts the weights to export into the model, and those that are trained on back at its end.
    """
    engines = trainer.due_checkpoint_engines
    exports = [engine for engine in engines if member(engine.config, ConfigDefaults, "exports")]
    trainer.due_checkpoint_engines = [engine for engine in engines if engine not in exports]
    try:
        saved = [*(yield)]
        if exports:
            with weights:
                saved += [path for path in (engine.save(trainer) for engine in exports) if path is not None]
    finally:
        trainer.due_checkpoint_engines = engines
    return saved
