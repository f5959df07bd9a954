"""The focal loss (Lin et al., 2017): what is easy counts less."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import attrs
import torch
from hooktrain import Batch, LossSum, at_least, field, hookimpl
from hooktrain_sft.loss.selective_loss import per_token
from torch import Tensor
from torch.nn import Module


@attrs.frozen(kw_only=True)
class FocalConfig:
    """Cross-entropy times ``(1 - p) ** gamma``, p being the target's."""

    gamma: float = field(default=2.0, validator=at_least(0))
    """How much less it counts; 0 is plain cross-entropy."""


@attrs.frozen(kw_only=True)
class WholeFocalConfig(FocalConfig):
    """The same, from all logits of a model."""


@hookimpl
def register_configs() -> Mapping[str, Mapping[str, type]]:
    return {"loss": {"focal": FocalConfig, "whole_focal": WholeFocalConfig}}


@hookimpl
def make_loss(config: Any) -> Callable[..., LossSum] | None:
    if isinstance(config, WholeFocalConfig):
        return partial(whole_focal, gamma=config.gamma)
    if isinstance(config, FocalConfig):
        return per_token(partial(focal, gamma=config.gamma))
    return None  # leaves it to the next plugin


def focal(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """Logits of shape (tokens, vocabulary), token ids of shape (tokens,);
    returns the loss of each token, shape (tokens,)."""
    log_p = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    return -((1 - log_p.exp()) ** gamma) * log_p


def whole_focal(
    model: Module, batch: Batch, denominator: float, gamma: float
) -> LossSum:
    inputs = {
        name: each for name, each in batch.items() if name != "labels"
    }
    logits = model(**inputs, use_cache=False).logits.float()
    # labels are not shifted: the token at t is predicted from those before
    logits, targets = logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:]
    counts = targets.flatten() != -100
    each = focal(logits, targets.flatten().clamp(min=0), gamma)
    total = torch.where(counts, each, 0.0).sum()  # a sum, never a mean
    return LossSum(total, denominator)
