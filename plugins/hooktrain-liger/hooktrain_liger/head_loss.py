"""LM head and cross-entropy with Liger's kernels: sums over tokens, which the engine divides, and never means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

__all__ = ["CrossEntropy", "FusedLinearCrossEntropy"]

_CHUNK = 1024
"""Tokens whose logits exist at a time in ``CrossEntropy``, unless the recipe sets it."""

Sums = dict[str, Tensor]


class FusedLinearCrossEntropy:
    """LM head and cross-entropy in one: gradients come with the loss, and logits of a chunk of tokens exist at a time.

    Args:
        multiplier: factor on all logits.
        softcap: logits are squeezed into (-softcap, softcap) with tanh; None leaves them.
        label_smoothing: share of the target that is spread over the vocabulary.
        z_loss: factor of the squared log-normaliser, which is added to each token's loss.
        token_scaling: whether each token's loss is multiplied by the probability of its target, as a constant.
    """

    def __init__(
        self,
        multiplier: float = 1.0,
        softcap: float | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        token_scaling: bool = False,
    ) -> None:
        self._multiplier = multiplier
        self._options: Mapping[str, Any] = {
            "softcap": softcap,
            "label_smoothing": label_smoothing,
            "lse_square_scale": z_loss,
            "use_token_scaling": token_scaling,
        }

    def __call__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, factors: Tensor | None = None
    ) -> tuple[Tensor, Sums]:
        """Compute the loss of some tokens.

        Args:
            hidden: inputs of the head, shape (tokens, hidden).
            weight: shape (vocabulary, hidden).
            bias: shape (vocabulary,), or None.
            targets: token ids, or -100 for no loss, shape (tokens,).
            factors: on the loss of each token, shape (tokens,); with them Liger computes the logits twice.

        Returns:
            The sum of the loss, shape (), in single precision; and the number of tokens that were predicted right, or
            the sum of their factors.
        """
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        inputs, matrix, offset = _prepared(hidden, weight, bias, self._multiplier)
        others_train = matrix.requires_grad or (offset is not None and offset.requires_grad)
        if others_train and not inputs.requires_grad and torch.is_grad_enabled():
            inputs = inputs.detach().requires_grad_()  # Liger computes no gradient at all where hidden has none
        with torch.autocast(hidden.device.type, enabled=False):
            found = liger_fused_linear_cross_entropy(
                inputs,
                matrix,
                targets,
                offset,
                reduction="sum" if factors is None else "none",
                accum_dtype=torch.float32,  # in half precision chunks would not add up
                return_predicted_tokens=True,
                **self._options,
            )
        total = found.loss if factors is None else (found.loss * factors).sum()
        return total, {"token_accuracy": _correct(found.predicted_tokens, targets, factors)}


class CrossEntropy:
    """The LM head by torch and the cross-entropy of its logits by Liger, which are computed again in backward.

    Args:
        multiplier, softcap, label_smoothing, z_loss: as for ``FusedLinearCrossEntropy``.
        chunk_size: tokens whose logits exist at a time.
    """

    def __init__(
        self,
        multiplier: float = 1.0,
        softcap: float | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        chunk_size: int | None = None,
    ) -> None:
        self._multiplier, self._chunk_size = multiplier, chunk_size or _CHUNK
        # soft-capping is Liger's too: torch's tanh would keep the logits, which the kernel overwrites with gradients
        self._options = {"softcap": softcap, "label_smoothing": label_smoothing, "lse_square_scale": z_loss}

    def __call__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, factors: Tensor | None = None
    ) -> tuple[Tensor, Sums]:
        """Compute the loss of some tokens, as ``FusedLinearCrossEntropy`` does."""
        inputs, matrix, offset = _prepared(hidden, weight, bias, self._multiplier)
        total = torch.zeros((), device=hidden.device)
        correct = torch.zeros((), dtype=torch.long if factors is None else torch.float, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(inputs), self._chunk_size):
                part = slice(start, start + self._chunk_size)
                mine = None if factors is None else factors[part]
                values = inputs[part], matrix, offset, targets[part], mine
                loss, right = checkpoint(self._chunk, *values, use_reentrant=False)
                total, correct = total + loss, correct + right
        return total, {"token_accuracy": correct}

    def _chunk(
        self, inputs: Tensor, matrix: Tensor, offset: Tensor | None, targets: Tensor, factors: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        from liger_kernel.transformers.functional import liger_cross_entropy

        logits = functional.linear(inputs, matrix, offset).float()  # Liger adds up losses in the type of the logits
        reduction = "sum" if factors is None else "none"
        found = liger_cross_entropy(logits, targets, reduction=reduction, return_predicted_tokens=True, **self._options)
        total = found.loss if factors is None else (found.loss * factors).sum()
        return total, _correct(found.predicted_tokens, targets, factors)


def _prepared(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, multiplier: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast everything to the type of the matrix products; under autocast Liger would cast the weight for each chunk.

    A factor on the logits is applied to the hidden states and the bias.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    if multiplier != 1.0:
        hidden = hidden.float() * multiplier
        bias = None if bias is None else bias.float() * multiplier
    return hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _correct(predicted: Tensor, targets: Tensor, factors: Tensor | None) -> Tensor:
    right = predicted == targets  # where there is no loss, Liger predicts -1
    return (right if factors is None else right * factors).sum()
