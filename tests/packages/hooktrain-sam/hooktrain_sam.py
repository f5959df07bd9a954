"""Sharpness-aware minimization (Foret et al., 2021, arXiv 2010.01412)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import torch
from hooktrain import Batch, PluginInfo, StepOutput, Trainer, at_least, field, hookimpl
from torch import Tensor

hooktrain_plugin = PluginInfo(
    api=">=2.0,<3", changes_gradients=True, active_when=lambda recipe: recipe.settings["sam"].rho > 0
)


@attrs.frozen(kw_only=True)
class Settings:
    """The recipe key ``sam``."""

    rho: float = field(default=0.0, validator=at_least(0))
    """Distance to the weights whose gradient a step takes, such as 0.05; 0 takes that of the weights themselves."""


@hookimpl
def register_configs() -> Mapping[str, Mapping[str, type]]:
    return {"settings": {"sam": Settings}}


@hookimpl
def run_step(trainer: Trainer, batches: Sequence[Batch]) -> StepOutput:
    total = _gradients(trainer, batches)
    moved = _climb(trainer, trainer.recipe.settings["sam"].rho)
    trainer.strategy.zero_grad()
    trainer.begin_step(batches)
    _gradients(trainer, batches)
    with torch.no_grad():
        for weight, before in moved:
            weight.copy_(before)
    update = trainer.optimizer_step()
    return StepOutput(total, update.grad_norm, update.stepped)


def _gradients(trainer: Trainer, batches: Sequence[Batch]) -> Tensor:
    """Add up the gradients of a step; returns the sum of its loss."""
    return torch.stack([trainer.microbatch(batch).total for batch in batches]).sum()


@torch.no_grad()
def _climb(trainer: Trainer, rho: float) -> list[tuple[Tensor, Tensor]]:
    """Move the weights along their gradient; returns them with their values before."""
    weights = [(weight, weight.grad) for weight in trainer.model.parameters() if weight.grad is not None]
    norm = torch.nn.utils.get_total_norm([gradient for _, gradient in weights])
    moved = [(weight, weight.detach().clone()) for weight, _ in weights]
    for weight, gradient in weights:
        weight.add_(gradient * (rho / (norm + 1e-12)))
    return moved
