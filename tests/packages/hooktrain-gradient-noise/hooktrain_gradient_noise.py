"""Annealed Gaussian noise on the gradients (Neelakantan et al., 2015, arXiv 1511.06807)."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch
from hooktrain import PluginInfo, Trainer, at_least, field, hookimpl

hooktrain_plugin = PluginInfo(
    api=">=2.0,<3", changes_gradients=True, active_when=lambda recipe: recipe.settings["gradient_noise"].scale > 0
)


@attrs.frozen(kw_only=True)
class Settings:
    """The recipe key ``gradient_noise``."""

    scale: float = field(default=0.0, validator=at_least(0))
    """Variance of the noise in the first step; 0 adds none."""
    decay: float = field(default=0.55, validator=at_least(0))
    """How fast it falls: step t has 1 / (1 + t) ** decay of it."""


@hookimpl
def register_configs() -> Mapping[str, Mapping[str, type]]:
    return {"settings": {"gradient_noise": Settings}}


@hookimpl
@torch.no_grad()
def on_optimizer_step_start(trainer: Trainer) -> None:
    settings, step = trainer.recipe.settings["gradient_noise"], trainer.global_step
    deviation = (settings.scale / (1 + step) ** settings.decay) ** 0.5
    generator = torch.Generator().manual_seed(1_000_003 * trainer.recipe.seed + step)  # on all ranks, after any resume
    for weight in trainer.model.parameters():
        if weight.grad is not None:
            noise = torch.randn(weight.grad.shape, generator=generator)
            weight.grad.add_(noise.to(weight.grad, non_blocking=True), alpha=deviation)
