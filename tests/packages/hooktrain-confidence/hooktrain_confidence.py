"""The confidence of a model: the mean probability of its best guess, from its logits in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from hooktrain import PluginInfo, Trainer, field, hookimpl
from torch import Tensor
from torch.nn import Module


@attrs.frozen(kw_only=True)
class Settings:
    """The recipe key ``confidence``."""

    enabled: bool = field(default=False, affects_training=False)
    """Whether to read the logits, which takes a softmax for each token."""


class Confidence:
    hooktrain_plugin = PluginInfo(
        api="~=2.0", needs_logits=True, active_when=lambda recipe: recipe.settings["confidence"].enabled
    )

    def __init__(self) -> None:
        self.sums: Tensor | None = None  # of probabilities and of tokens, shape (2,)
        self.handle: Any = None

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"settings": {"confidence": Settings}}

    @hookimpl
    def on_train_start(self, trainer: Trainer) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64, device=trainer.device)
        self.handle = trainer.strategy.unwrap(trainer.model).register_forward_hook(self._look)

    @hookimpl
    def collect_metrics(self, trainer: Trainer) -> Mapping[str, Tensor]:
        assert self.sums is not None
        probability, tokens = trainer.strategy.sum_tensor(self.sums).unbind()
        self.sums = torch.zeros_like(self.sums)
        return {"confidence/mean": probability / tokens.clamp(min=1)}

    @hookimpl
    def on_teardown(self) -> None:
        if self.handle is not None:
            self.handle.remove()

    @torch.no_grad()
    def _look(self, model: Module, inputs: Any, output: Any) -> None:
        if model.training:
            assert self.sums is not None
            best = output.logits.float().softmax(-1).amax(-1)  # (rows, tokens)
            self.sums += torch.stack(
                [best.sum(dtype=torch.float64), best.new_full((), best.numel(), dtype=torch.float64)]
            )
