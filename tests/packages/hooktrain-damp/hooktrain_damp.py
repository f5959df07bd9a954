"""Damps the gradients of steps whose loss is a spike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from hooktrain import Batch, PluginInfo, StepOutput, Trainer, at_least, between, field, hookimpl
from torch import Tensor


@attrs.frozen(kw_only=True)
class Settings:
    """The recipe key ``damp``."""

    factor: float = field(default=0.0, validator=at_least(0))
    """Multiple of the average loss from which a step is damped, such as 2.0; 0 damps none."""
    memory: float = field(default=0.9, validator=between(0, 1))
    """Share of the average that a step leaves."""


class Damp:
    hooktrain_plugin = PluginInfo(
        api=">=2.0,<3", changes_gradients=True, active_when=lambda recipe: recipe.settings["damp"].factor > 0
    )

    def __init__(self) -> None:
        self.average: Tensor | None = None  # of the losses so far, shape ()

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"settings": {"damp": Settings}}

    @hookimpl
    def run_step(self, trainer: Trainer, batches: Sequence[Batch]) -> StepOutput:
        total = torch.stack([trainer.microbatch(batch).total for batch in batches]).sum()
        self._damp(trainer, total)
        update = trainer.optimizer_step()
        return StepOutput(total, update.grad_norm, update.stepped)

    @torch.no_grad()
    def _damp(self, trainer: Trainer, total: Tensor) -> None:
        settings = trainer.recipe.settings["damp"]
        loss = trainer.strategy.sum_tensor(total.double()) / (trainer.denominator or 1)
        if self.average is None:
            self.average = loss
        scale = (settings.factor * self.average / loss).clamp(max=1.0)
        for weight in trainer.model.parameters():
            if weight.grad is not None:
                weight.grad.mul_(scale.to(weight.grad.dtype))
        self.average = self.average.lerp(loss * scale, 1 - settings.memory)

    @hookimpl
    def collect_state(self) -> Mapping[str, Any] | None:
        return None if self.average is None else {"average": self.average}

    @hookimpl
    def restore_state(self, trainer: Trainer, state: Mapping[str, Any]) -> None:
        self.average = state["average"].to(trainer.device)
