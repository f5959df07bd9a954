"""Positions of a micro-batch that carry a loss."""

from __future__ import annotations

import torch
from torch import Tensor

from hooktrain_sft.loss.token_loss import IGNORE_INDEX

__all__ = ["supervised"]


def supervised(labels: Tensor | None, num_target_tokens: int, shifted: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the positions that predict trained tokens, and those tokens, without waiting for the device.

    Args:
        labels: not shifted, -100 for no loss, shape (sequences, tokens).
        num_target_tokens: number of trained tokens, the first of each sequence excluded.
        shifted: the token that each position predicts, -100 for none, where a batch has it in the place of labels.

    Returns:
        Indices into the flattened positions, and the token to predict there; both of shape (num_target_tokens,), or
        (1,) where that is 0, so that a padding batch is computed like any other. Where fewer tokens are trained than
        ``num_target_tokens``, the remaining positions have no target.
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
