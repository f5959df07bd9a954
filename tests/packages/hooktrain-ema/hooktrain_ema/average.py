"""The average itself, and a strategy that keeps it up to date."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from hooktrain import OptimizerStep, Scheduler, Strategy
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

__all__ = ["AveragingStrategy", "MovingAverage"]


class MovingAverage:
    """A copy of the trained weights, in single precision and on their device, that follows them.

    Args:
        decay: share of the average that a step leaves; less in the first steps, so that the weights that the run began
            with do not stay in it.

    Attributes:
        steps: updates so far.
        weights: names to averaged weights; empty before the first update.
    """

    def __init__(self, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.weights: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, model: Module) -> None:
        """Add the current weights to the average."""
        self.steps += 1
        share = max(1 - self.decay, 1 / self.steps)  # a plain mean until the decay is less
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                average = self.weights.setdefault(name, torch.zeros_like(weight, dtype=torch.float32))
                average.lerp_(weight.detach().float(), share)

    @contextmanager
    def in_place_of(self, model: Module) -> Iterator[None]:
        """Put the averaged weights into the model, and restore its own at the end."""
        own = {name: weight for name, weight in model.named_parameters() if name in self.weights}
        kept = {name: weight.detach().clone() for name, weight in own.items()}
        try:
            _copy(own, self.weights)
            yield
        finally:
            _copy(own, kept)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "weights": dict(self.weights)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        self.steps = state["steps"]
        self.weights = {name: weight.to(device, copy=True) for name, weight in state["weights"].items()}


@torch.no_grad()
def _copy(into: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, weight in into.items():
        weight.copy_(values[name])


class AveragingStrategy:
    """A strategy that updates the average after each step of another, and exports the averaged weights."""

    def __init__(self, inner: Strategy, average: MovingAverage) -> None:
        self._inner, self._average = inner, average

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def prepare(
        self, model: Module, optimizer: Optimizer, scheduler: Scheduler, accumulation: int
    ) -> tuple[Module, Optimizer, Scheduler]:
        made = self._inner.prepare(model, optimizer, scheduler, accumulation)
        self._model = self._inner.unwrap(made[0])
        return made

    def optimizer_step(self, max_norm: float, wants_norm: bool, skip_non_finite: bool) -> OptimizerStep:
        done = self._inner.optimizer_step(max_norm, wants_norm, skip_non_finite)
        if done.stepped:
            self._average.update(self._model)
        return done

    def full_state_dict(self, model: Module) -> dict[str, Tensor]:
        """Return the averaged weights, for an export."""
        weights = self._inner.full_state_dict(model)
        averaged = {n: a.to(weights[n].dtype).cpu() for n, a in self._average.weights.items() if n in weights}
        return {**weights, **averaged}
