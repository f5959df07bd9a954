"""Positions of a micro-batch that carry a loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from hooktrain_sft.loss.token_loss import IGNORE_INDEX

__all__ = ["Targets", "supervised"]


class Targets(NamedTuple):
    """The trained tokens of a micro-batch.

    Attributes:
        number: how many they are, the first of each sequence excluded; a host number.
        denominator: the same, or the sum of their weights.
        weights: the weight of the token that each position predicts, shape (sequences, tokens); None where all are 1.
    """

    number: int
    denominator: float
    weights: Tensor | None = None

    @classmethod
    def of(cls, batch: dict[str, Any], denominator: float) -> Targets:
        """Take the weights and their number out of a micro-batch."""
        weights = batch.pop("token_weights", None)
        shifted = batch.pop("shift_token_weights", None)
        if weights is not None:
            shifted = torch.zeros_like(weights)
            shifted[:, :-1] = weights[:, 1:]
        return cls(int(batch.pop("num_target_tokens", denominator)), denominator, shifted)


def supervised(
    labels: Tensor | None, num_target_tokens: int, shifted: Tensor | None = None, weights: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the positions that predict trained tokens, those tokens and their weights, without waiting for the device.

    Args:
        labels: not shifted, -100 for no loss, shape (sequences, tokens).
        num_target_tokens: number of trained tokens, the first of each sequence excluded.
        shifted: the token that each position predicts, -100 for none, where a batch has it in the place of labels.
        weights: the weight of the token that each position predicts, shape (sequences, tokens); fewer tokens where an
            adapter has put some before them. None where all are 1.

    Returns:
        Indices into the flattened positions, the token to predict there, and its weight or None; all of shape
        (num_target_tokens,), or (1,) where that is 0, so that a padding batch is computed like any other. Where fewer
        tokens are trained than ``num_target_tokens``, the remaining positions have no target.
    """
    if shifted is None:
        assert labels is not None
        shifted = torch.full_like(labels, IGNORE_INDEX)
        shifted[:, :-1] = labels[:, 1:]
    flat = shifted.reshape(-1)
    # nonzero() would wait to learn how many there are; the last position never predicts anything, so it can fill up
    found = torch.nonzero_static(flat != IGNORE_INDEX, size=max(num_target_tokens, 1), fill_value=len(flat) - 1)
    positions = found[:, 0]
    targets = flat.index_select(0, positions)
    if weights is None:
        return positions, targets, None
    weights = functional.pad(weights, (shifted.shape[1] - weights.shape[1], 0))
    return positions, targets, weights.reshape(-1).index_select(0, positions)
