"""Sharpness-aware minimization (Foret et al., 2021).

The gradient is not taken where the weights are, but where the loss is
highest in a small ball around them: two passes over each micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from hooktrain import (
    Batch,
    HooktrainError,
    PluginInfo,
    Recipe,
    StepOutput,
    Trainer,
    at_least,
    field,
    hookimpl,
)
from torch import Tensor


@attrs.frozen(kw_only=True)
class Settings:
    """What a recipe may say under ``sharpness``."""

    radius: float = field(default=0.0, validator=at_least(0))
    """Size of the ball; 0 leaves the step as it is."""


def _is_used(recipe: Recipe) -> bool:
    settings: Settings = recipe.settings["sharpness"]
    return settings.radius > 0


hooktrain_plugin = PluginInfo(changes_gradients=True, active_when=_is_used)


@hookimpl
def register_configs() -> Mapping[str, Mapping[str, type]]:
    return {"settings": {"sharpness": Settings}}


@hookimpl
def run_step(trainer: Trainer, batches: Sequence[Batch]) -> Any:
    radius = trainer.recipe.settings["sharpness"].radius
    total = _gradients(trainer, batches)
    kept = _climb(trainer, radius)
    trainer.begin_step(batches)  # the same micro-batches, once more
    _gradients(trainer, batches)
    with torch.no_grad():
        for weight, value in kept:
            weight.copy_(value)
    update = trainer.optimizer_step()  # clip, update, clear, schedule
    return StepOutput(total, update.grad_norm, update.stepped)


def _gradients(trainer: Trainer, batches: Sequence[Batch]) -> Tensor:
    """Forward and backward; the loss as a sum over tokens, shape ()."""
    total = torch.zeros((), device=trainer.device)
    for batch in batches:
        total = total + trainer.microbatch(batch).total
    return total


@torch.no_grad()
def _climb(trainer: Trainer, radius: float) -> list[tuple[Tensor, Tensor]]:
    """Move to the edge of the ball; the weights with their old values."""
    weights = list(trainer.model.parameters())
    pairs = [(w, w.grad) for w in weights if w.grad is not None]
    if not pairs:
        raise HooktrainError(
            "sharpness.radius: the strategy leaves no gradients with the"
            " weights; use the strategy 'torch', or give a radius of 0"
        )
    norm = torch.nn.utils.get_total_norm(
        [gradient for _, gradient in pairs]
    )
    kept: list[tuple[Tensor, Tensor]] = []
    for weight, gradient in pairs:
        kept.append((weight, weight.clone()))
        weight.addcdiv_(gradient, norm + 1e-12, value=radius)
    trainer.strategy.zero_grad()
    return kept
