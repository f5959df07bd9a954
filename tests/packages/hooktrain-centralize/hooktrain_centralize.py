"""Gradient centralization (Yong et al., 2020, arXiv 2004.01461)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import torch
from hooktrain import Batch, PluginInfo, StepOutput, Trainer, field, hookimpl

hooktrain_plugin = PluginInfo(
    api=">=2.0,<3", changes_gradients=True, active_when=lambda recipe: recipe.settings["centralize"].enabled
)


@attrs.frozen(kw_only=True)
class Settings:
    """The recipe key ``centralize``."""

    enabled: bool = field(default=False)
    """Whether to take its mean from each row of a matrix's gradient."""


@hookimpl
def register_configs() -> Mapping[str, Mapping[str, type]]:
    return {"settings": {"centralize": Settings}}


@hookimpl
def run_step(trainer: Trainer, batches: Sequence[Batch]) -> StepOutput:
    total = torch.stack([trainer.microbatch(batch).total for batch in batches]).sum()
    with torch.no_grad():
        for weight in trainer.model.parameters():
            if weight.grad is not None and weight.grad.ndim > 1:
                weight.grad.sub_(weight.grad.mean(dim=tuple(range(1, weight.grad.ndim)), keepdim=True))
    update = trainer.optimizer_step()
    return StepOutput(total, update.grad_norm, update.stepped)
