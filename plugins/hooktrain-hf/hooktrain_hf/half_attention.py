"""Causal attention of short documents in bf16 on a processor, as matrix products.

In bf16, torch's fused kernel for the processor takes about seven times as long backward as forward. Keeping the
probabilities and multiplying is 5 to 9 times as fast for documents of 32 to 128 tokens and 1.6 times for 320, forward
and backward together; beyond, the kernel is faster (processor seconds on a Xeon with AMX, torch 2.13).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from hooktrain_hf.compat import softmax_backward

__all__ = ["LONGEST", "attend_short", "is_short"]

LONGEST = 320
"""Most tokens of a document that is computed here."""


def is_short(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Return whether states are short, in bf16, on a processor, and need gradients."""
    return (
        q.shape[2] <= LONGEST
        and q.dtype is torch.bfloat16
        and q.device.type == "cpu"
        and torch.is_grad_enabled()
        and (q.requires_grad or k.requires_grad or v.requires_grad)
    )


def attend_short(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Compute causal attention; the softmax is in float32, its result in bf16.

    Args:
        q: shape (documents, heads, tokens, channels).
        k: shape (documents, key heads, tokens, channels), the key heads being a divisor of the heads.
        v: shape (documents, key heads, tokens, channels).
        scale: factor of the scores.

    Returns:
        Shape (documents, heads, tokens, channels).
    """
    apply: Any = _Attend.apply
    made: Tensor = apply(q, k, v, scale)
    return made


class _Attend(Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        shape = q.shape
        tokens, channels = shape[2:]
        shared = shape[1] // k.shape[1]
        # heads that share a key lie one after the other, and so form one longer product
        q = q.reshape(-1, shared * tokens, channels)
        k, v = (t.reshape(-1, tokens, channels) for t in (k, v))
        scores = torch.baddbmm(_later(tokens, shared), q, k.transpose(1, 2), alpha=scale)
        probabilities = torch.softmax(scores, -1)  # (documents * key heads, shared * tokens, tokens)
        ctx.save_for_backward(q, k, v, probabilities)
        ctx.scale, ctx.shape = scale, shape
        return torch.bmm(probabilities, v).view(shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, probabilities = ctx.saved_tensors
        gradient = gradient.reshape(q.shape)
        of_values = torch.bmm(probabilities.transpose(1, 2), gradient)
        of_probabilities = torch.bmm(gradient, v.transpose(1, 2))
        of_scores = softmax_backward(of_probabilities, probabilities).mul_(ctx.scale)
        of_keys = torch.bmm(of_scores.transpose(1, 2), q)
        by_key = (ctx.shape[0], -1, *ctx.shape[2:])
        return torch.bmm(of_scores, k).view(ctx.shape), of_keys.view(by_key), of_values.view(by_key), None


@functools.lru_cache(maxsize=64)
def _later(tokens: int, shared: int) -> Tensor:
    """Return the mask to add to scores: minus infinity for later keys, shape (1, shared * tokens, tokens)."""
    with torch.inference_mode(False):
        return torch.full((tokens, tokens), -torch.inf, dtype=torch.bfloat16).triu_(1).repeat(shared, 1)[None]
