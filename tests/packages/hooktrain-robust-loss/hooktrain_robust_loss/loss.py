"""Generalized cross-entropy from all logits of a model, a chunk of tokens at a time."""

from __future__ import annotations

import torch
from hooktrain import Batch, LossSum
from torch import Tensor
from torch.nn import Module
from torch.utils.checkpoint import checkpoint

__all__ = ["RobustLoss"]


class RobustLoss:
    """Sums ``(1 - p^q) / q`` over the labels other than -100.

    Args:
        q: from above 0, which is cross-entropy, to 1.
        chunk_size: tokens whose logits are in single precision at the same time, forward and backward.
    """

    def __init__(self, q: float, chunk_size: int) -> None:
        self.q, self.chunk_size = q, chunk_size

    def __call__(self, model: Module, batch: Batch, denominator: float) -> LossSum:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits = model(**inputs, use_cache=False).logits  # (rows, tokens, vocabulary)
        logits, targets = logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
        parts = [
            # only the logits in the model's precision are kept; the rest is recomputed
            checkpoint(self._chunk, some, those, use_reentrant=False, preserve_rng_state=False)
            for some, those in zip(logits.split(self.chunk_size), targets.split(self.chunk_size), strict=True)
        ]
        total, surprise, right = torch.stack(parts).sum(0).unbind()
        sums = {"cross_entropy": surprise.detach(), "token_accuracy": right.detach()}
        return LossSum(total, denominator, sums)

    def _chunk(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss, cross-entropy and right guesses, each summed over the tokens that count, shape (3,)."""
        counts = targets != -100
        goal = targets.clamp(min=0)[:, None]
        log_p = logits.float().log_softmax(-1).gather(-1, goal)[:, 0]  # (tokens,)
        each = -torch.expm1(self.q * log_p) / self.q
        right = logits.argmax(-1) == goal[:, 0]
        return torch.stack([torch.where(counts, value, 0.0).sum() for value in (each, -log_p, right.float())])
