"""Fails while it runs."""

from __future__ import annotations

from hooktrain import Trainer, hookimpl


class Raises:
    @hookimpl
    def on_step_end(self, trainer: Trainer) -> None:
        if trainer.global_step == 2:
            _divide(1, 0)


def _divide(one: int, other: int) -> float:
    return one / other
