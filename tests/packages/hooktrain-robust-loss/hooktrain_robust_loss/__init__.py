"""Generalized cross-entropy for hooktrain: a loss on which wrong labels have less influence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hooktrain import hookimpl

from hooktrain_robust_loss.config import RobustLossConfig

if TYPE_CHECKING:
    from hooktrain import LossSum

__all__ = ["RobustLossConfig"]


@hookimpl
def register_configs() -> Mapping[str, Mapping[str, type]]:
    return {"loss": {"robust": RobustLossConfig}}


@hookimpl
def make_loss(config: Any) -> Callable[..., LossSum] | None:
    if not isinstance(config, RobustLossConfig):
        return None
    from hooktrain_robust_loss.loss import RobustLoss  # imports torch, which a listing does not need

    return RobustLoss(config.q, config.chunk_size)
