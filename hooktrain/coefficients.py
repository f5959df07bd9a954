"""Coefficients of terms of the loss, which a recipe may have change over the steps of a run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import attrs

from hooktrain.config import above, at_least, field

if TYPE_CHECKING:
    from hooktrain.training.trainer import Trainer

__all__ = ["CoefficientSchedule", "coefficient_at"]


@attrs.frozen(kw_only=True)
class CoefficientSchedule:
    """A coefficient that goes from one value to another; before and after it keeps these.

    A field of the type ``float | CoefficientSchedule`` takes a number, or a mapping with these keys.
    """

    start: float = field(default=0.0)
    """The value at first."""
    end: float = field()
    """The value in the end."""
    begin: float = field(default=0.0, validator=at_least(0))
    """Optimizer steps before it changes; below 1 a share of the run."""
    steps: float = field(default=1.0, validator=above(0))
    """Optimizer steps in which it changes; up to 1 a share of the run."""
    shape: Literal["linear", "cosine", "exponential"] = field(default="linear")
    """The way from one to the other; ``exponential`` needs two values of the same sign."""

    def __attrs_post_init__(self) -> None:
        if self.shape == "exponential" and self.start * self.end <= 0:
            raise ValueError(
                f"shape: given exponential from {self.start:g} to {self.end:g}, expected two values of the same sign,"
                " neither of them 0; write linear or cosine"
            )

    def at(self, step: int, total_steps: int) -> float:
        """Return the coefficient.

        Args:
            step: optimizer steps that are finished.
            total_steps: those of the complete run.
        """
        begin = self.begin * total_steps if self.begin < 1 else self.begin
        length = self.steps * total_steps if self.steps <= 1 else self.steps
        share = min(1.0, max(0.0, (step - begin) / length))
        if self.shape == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        if self.shape == "exponential":
            return float(self.start * (self.end / self.start) ** share)
        return float(self.start + (self.end - self.start) * share)


def coefficient_at(coefficient: float | CoefficientSchedule, trainer: Trainer) -> float:
    """Return a recipe's coefficient for the step that is being computed; the same on all ranks and after a resume."""
    if isinstance(coefficient, CoefficientSchedule):
        return coefficient.at(trainer.global_step, trainer.training_horizon)
    return coefficient
