"""Registers an optimizer under a name that another distribution registers too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from hooktrain import field, hookimpl
from torch.nn import Module


@attrs.frozen(kw_only=True)
class OtherLionConfig:
    """Signs of gradients."""

    lr: float = field(default=1e-4)
    """Learning rate."""


@hookimpl
def register_configs() -> Mapping[str, Mapping[str, type]]:
    return {"optimizer": {"lion": OtherLionConfig}}


@hookimpl
def make_optimizer(config: Any, model: Module) -> torch.optim.Optimizer | None:
    if not isinstance(config, OtherLionConfig):
        return None
    return torch.optim.Rprop(model.parameters(), lr=config.lr)
