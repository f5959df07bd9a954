"""Lookahead (Zhang et al., 2019, arXiv 1907.08610): slow weights that follow those of any optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from hooktrain import Batch, PluginInfo, StepOutput, Trainer, at_least, between, field, hookimpl
from torch import Tensor


@attrs.frozen(kw_only=True)
class Settings:
    """The recipe key ``lookahead``."""

    every: int = field(default=0, validator=at_least(0))
    """Steps after which the weights go back; 0 never."""
    share: float = field(default=0.5, validator=between(0, 1))
    """Share of the way that is kept."""


class Lookahead:
    hooktrain_plugin = PluginInfo(
        api=">=2.0,<3", changes_gradients=True, active_when=lambda recipe: recipe.settings["lookahead"].every > 0
    )

    def __init__(self) -> None:
        self.slow: dict[str, Tensor] = {}

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"settings": {"lookahead": Settings}}

    @hookimpl
    def run_step(self, trainer: Trainer, batches: Sequence[Batch]) -> StepOutput:
        settings, model = trainer.recipe.settings["lookahead"], trainer.strategy.unwrap(trainer.model)
        if not self.slow:
            self.slow = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        total = torch.stack([trainer.microbatch(batch).total for batch in batches]).sum()
        update = trainer.optimizer_step()
        if (trainer.global_step + 1) % settings.every == 0:
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    weight.copy_(self.slow[name].lerp_(weight, settings.share))
        return StepOutput(total, update.grad_norm, update.stepped)

    @hookimpl
    def collect_state(self) -> Mapping[str, Any] | None:
        return {"slow": dict(self.slow)} if self.slow else None

    @hookimpl
    def restore_state(self, trainer: Trainer, state: Mapping[str, Any]) -> None:
        self.slow = {name: weight.to(trainer.device, copy=True) for name, weight in state["slow"].items()}
