"""Keeps weights close to where they began: a term of the loss (L2-SP)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from hooktrain import (
    CoefficientSchedule,
    LossTerm,
    PluginInfo,
    Trainer,
    coefficient_at,
    field,
    hookimpl,
)
from torch import Tensor


@attrs.frozen(kw_only=True)
class Settings:
    """What a recipe may say under ``startpoint``."""

    coefficient: float | CoefficientSchedule = field(default=0.0)
    """How much the distance counts; 0 trains without it."""


class Startpoint:
    """Adds the squared distance from the weights at the beginning."""

    hooktrain_plugin = PluginInfo(
        loss_terms="startpoint",
        active_when=lambda recipe: (
            recipe.settings["startpoint"].coefficient != 0
        ),
    )

    def __init__(self) -> None:
        self.start: list[Tensor] = []

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"settings": {"startpoint": Settings}}

    @hookimpl
    def collect_state(self) -> Mapping[str, Any]:
        return {str(number): each for number, each in enumerate(self.start)}

    @hookimpl
    def restore_state(
        self, trainer: Trainer, state: Mapping[str, Any]
    ) -> None:
        self.start = [each.to(trainer.device) for each in state.values()]

    @hookimpl
    def count_loss_terms(self) -> Mapping[str, float]:
        return {"startpoint": 1.0}  # one for each micro-batch

    @hookimpl
    def collect_loss_terms(
        self, trainer: Trainer
    ) -> Mapping[str, LossTerm]:
        weights = [p for p in trainer.model.parameters() if p.requires_grad]
        if not self.start:
            self.start = [each.detach().clone() for each in weights]
        pairs = zip(weights, self.start, strict=True)
        distance = torch.stack(
            [(now - then).square().sum() for now, then in pairs]
        )
        settings: Settings = trainer.recipe.settings["startpoint"]
        coefficient = coefficient_at(settings.coefficient, trainer)
        return {"startpoint": LossTerm(distance.sum(), coefficient)}
