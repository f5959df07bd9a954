"""The loss ``distill`` as the papers write it, from torch's own functions, for the trained tokens of one document."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def naive_divergence(config: Any, model: Tensor, teacher: Tensor) -> Tensor:
    """Divergence of each token from logits of both, shape (tokens, vocabulary)."""
    q, p = ((logits / config.temperature).softmax(-1) for logits in (model, teacher))

    def kl(one: Tensor, other: Tensor) -> Tensor:
        return (one * (one.log() - other.log())).sum(-1)

    if config.divergence == "jsd":
        beta = 0.5 if config.beta is None else config.beta
        mixture = beta * p + (1 - beta) * q
        return beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)
    return kl(p, q) if config.divergence == "forward_kl" else kl(q, p)


def naive_loss(config: Any, model: Tensor, teacher: Tensor, goal: Tensor, weights: Tensor | float = 1.0) -> Tensor:
    """Sum of the loss over tokens, and of the divergence and the cross-entropy."""
    each = naive_divergence(config, model, teacher)
    labels = functional.cross_entropy(model, goal, reduction="none")
    share = config.label_weight
    return torch.stack([(one * weights).sum() for one in ((1 - share) * each + share * labels, each, labels)])
