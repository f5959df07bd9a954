"""A schedule that falls with the square root of the step, and the loss as a running mean.

It shows what most plugins do. *Registering a part*: a config class, which recipes select by name, and the factory that
builds the part. *Observing*: event hooks that follow the run, add metrics, and keep state that is saved with every
checkpoint. Keep what you need and delete the rest: every hook is optional.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from hooktrain import PluginInfo, StepOutput, Trainer, at_least, between, field, hookimpl
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["InverseSqrtConfig", "Plugin", "Settings"]

# Frozen classes declare the keys of a recipe. Types and validators reject wrong values before anything is loaded, and
# the text under a field is its documentation.


@attrs.frozen(kw_only=True)
class InverseSqrtConfig:
    """The rate rises in a line to the optimizer's, then falls with the square root of the step (Vaswani et al., 2017).

    It needs no horizon: a run can be made longer without changing what came before.
    """

    warmup_steps: int = field(default=100, validator=at_least(1))
    """Optimizer steps in which the rate rises."""

    def factor(self, step: int) -> float:
        """Return the factor of the optimizer's rate after a number of finished steps; it is never 0."""
        return min((step + 1) / self.warmup_steps, math.sqrt(self.warmup_steps / (step + 1)))


@attrs.frozen(kw_only=True)
class Settings:
    """The recipe key ``PLUGIN_name``."""

    # affects_training=False: a resumed run may have another value, as the training stays the same
    decay: float = field(default=0.9, validator=between(0, 1), affects_training=False)
    """How much of the running mean a step leaves; with 0 it is the loss of the last step."""


class Plugin:
    """Registers a schedule, and adds a running mean of the loss to the metrics.

    Both have the name ``PLUGIN_name`` in recipes and metrics.
    """

    # the version of the hooks; a plugin also declares here what it requires, and what happens when it fails
    hooktrain_plugin = PluginInfo(api=">=2.0,<3")

    # the entry point names this class, and each run has an instance of its own: attributes may hold state
    def __init__(self) -> None:
        self.mean: Tensor | None = None  # shape (), on the device

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {
            "scheduler": {"PLUGIN_name": InverseSqrtConfig},
            "settings": {"PLUGIN_name": Settings},
        }

    @hookimpl
    def make_scheduler(self, config: Any, optimizer: Optimizer) -> LambdaLR | None:
        if not isinstance(config, InverseSqrtConfig):
            return None  # not ours: the engine tries the next plugin
        return LambdaLR(optimizer, config.factor)

    @hookimpl
    def on_step_end(self, trainer: Trainer, output: StepOutput) -> None:
        if not output.stepped:
            return  # the step was skipped, as its gradients were not finite
        # output.total is a sum over this rank's tokens, on the device. Do not wait for it here: no .item(), no print
        loss = trainer.strategy.sum_tensor(output.total.float()) / trainer.denominator
        decay = trainer.recipe.settings["PLUGIN_name"].decay
        self.mean = loss if self.mean is None else torch.lerp(loss, self.mean, decay)

    @hookimpl
    def collect_metrics(self) -> Mapping[str, Tensor]:
        # return tensors: the engine reads those of all plugins at once when it logs
        return {} if self.mean is None else {"PLUGIN_name/loss": self.mean}

    @hookimpl
    def collect_state(self) -> Mapping[str, Any]:
        return {} if self.mean is None else {"mean": self.mean}

    @hookimpl
    def restore_state(self, trainer: Trainer, state: Mapping[str, Any]) -> None:
        self.mean = state["mean"].to(trainer.device) if state else None
