"""Logits of trained tokens, handed to a function a chunk at a time and not kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
from torch import Tensor, nn

from hooktrain_sft.loss.selective_loss import SelectiveLoss
from hooktrain_sft.loss.token_loss import ChunkLoss

__all__ = ["visit_logits"]


@attrs.frozen
class _Visited:
    """Stands in the place of a loss, and hands each chunk to a function."""

    visit: Callable[[Tensor, Tensor], None]

    @property
    def metrics(self) -> tuple[str, ...]:
        return ()

    def __call__(
        self, logits: Tensor, targets: Tensor, scratch: Tensor, keep_logits: bool, weights: Tensor | None = None
    ) -> ChunkLoss:
        self.visit(logits, targets)
        return ChunkLoss(logits.new_zeros(()), {}, scratch, logits.new_ones((len(logits), 1)))


def visit_logits(
    model: nn.Module, batch: Mapping[str, Any], num_target_tokens: int, visit: Callable[[Tensor, Tensor], None]
) -> None:
    """Run a model without gradients, its LM head on the trained positions only, and hand out the logits.

    Args:
        model: the model, wrapped or not.
        batch: ``input_ids``, ``labels`` and other inputs of the model, on its device.
        num_target_tokens: the number of trained tokens.
        visit: takes logits, shape (tokens, vocabulary), and the tokens that they predict, shape (tokens,).

    Raises:
        ModelError: the model gives no logits, or is an encoder-decoder.
    """
    inputs = {name: value for name, value in batch.items() if "token_weights" not in name}
    seen = visit if num_target_tokens else _nothing  # a padding batch stands for no token with one that is not trained
    SelectiveLoss(_Visited(seen))(model, inputs, num_target_tokens)


def _nothing(logits: Tensor, targets: Tensor) -> None:
    """Take the logits of no trained token."""
