"""Which positions of a micro-batch carry a loss."""

from __future__ import annotations

import torch
from torch import Tensor

from hooktrain_sft.loss.token_loss import IGNORE_INDEX

__all__ = ["supervised"]


def supervised(labels: Tensor | None, num_target_tokens: int, shifted: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Where the supervised tokens are predicted, and what they are, without waiting for the device.

    Args:
        labels: not shifted, -100 for no loss, shape (rows, tokens).
        num_target_tokens: how many are supervised, the first of each row not counted.
        shifted: what each position is to predict, -100 for nothing, where the batch says that instead of labels.

    Returns:
        Indices into the flattened positions, and the token to be predicted there; both of shape
        (num_target_tokens,), or (1,) where that is 0, so that a padding batch is computed as all others are. Where
        fewer are trained than ``num_target_tokens``, the rest has no target.
    """
    if shifted is None:
        assert labels is not None
        shifted = torch.full_like(labels, IGNORE_INDEX)
        shifted[:, :-1] = labels[:, 1:]
    flat = shifted.reshape(-1)
    # nonzero() would wait to learn how many there are; the last position never predicts anything, so it can fill up
    found = torch.nonzero_static(flat != IGNORE_INDEX, size=max(num_target_tokens, 1), fill_value=len(flat) - 1)
    positions = found[:, 0]
    return positions, flat.index_select(0, positions)
