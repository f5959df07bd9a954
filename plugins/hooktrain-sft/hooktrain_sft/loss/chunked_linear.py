"""LM head and loss computed together, a chunk of tokens at a time, so that all logits never exist at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from hooktrain_sft.compat import keeps_graph
from hooktrain_sft.loss.logit_transform import LogitTransform
from hooktrain_sft.loss.token_loss import TokenLoss

__all__ = ["HeadGradient", "Sums", "automatic_chunk_size", "balanced", "chunks", "linear_loss", "logits_loss"]

Sums = dict[str, Tensor]
"""Metrics logged with a loss: names to sums over the same tokens, each of shape () and detached."""

_CHUNK_BYTES = {"cpu": 48 * 2**20}
"""Size of a chunk's logits in single precision, by device type; on a CPU it fits into the cache."""
_CHUNK_BYTES_ELSEWHERE = 512 * 2**20
"""The same for other devices, whose matrix units need more tokens to stay busy."""
_ROWS_AT_ONCE = 8192
"""Rows of the head whose gradient is computed at a time where it has to be widened, which limits the copies."""


def automatic_chunk_size(vocabulary: int, device: str) -> int:
    """Return how many tokens' logits fit into the budget of the device type; at least 16."""
    return max(16, _CHUNK_BYTES.get(device, _CHUNK_BYTES_ELSEWHERE) // (4 * vocabulary))


def linear_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    loss: TokenLoss,
    transform: LogitTransform = LogitTransform(),
    chunk_size: int | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Sums]:
    """Return the sum of a loss over the predictions of a linear head.

    The gradients are computed with the loss, while a chunk's logits exist; backward only scales them. Matrix products
    run in the autocast type, the loss and the sums over chunks in single precision at least.

    Args:
        hidden: input of the head, shape (tokens, hidden).
        weight: shape (vocabulary, hidden).
        bias: shape (vocabulary,), or None.
        targets: token ids, or -100 for no loss, shape (tokens,).
        loss: the loss of a chunk.
        transform: the model's transform of its logits.
        chunk_size: most tokens at a time; None chooses by the size of the vocabulary.
        weights: factors on the losses of the targets, shape (tokens,), or None.

    Returns:
        The total, shape (), and the sums to log.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    size = chunk_size or automatic_chunk_size(len(weight), device)
    enabled = torch.is_grad_enabled()
    apply: Any = _LinearLoss.apply
    total, *sums = apply(hidden, weight, bias, targets, loss, transform, size, dtype, enabled, weights)
    return total, dict(zip(loss.metrics, sums, strict=True))


def logits_loss(logits: Tensor, targets: Tensor, loss: TokenLoss, weights: Tensor | None = None) -> tuple[Tensor, Sums]:
    """Return the sum of a loss over logits that exist already.

    Args:
        logits: as the model returns them, of any floating type, shape (tokens, vocabulary).
        targets: token ids, or -100 for no loss, shape (tokens,).
        loss: the loss.
        weights: factors on the losses of the targets, shape (tokens,), or None.

    Returns:
        The total, shape (), and the sums to log.
    """
    apply: Any = _LogitsLoss.apply
    total, *sums = apply(logits, targets, loss, weights)
    return total, dict(zip(loss.metrics, sums, strict=True))


class _LinearLoss(Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        loss: TokenLoss,
        transform: LogitTransform,
        chunk_size: int,
        dtype: torch.dtype,
        grad_enabled: bool,
        weights: Tensor | None,
    ) -> tuple[Tensor, ...]:
        wants_hidden, wants_weight, wants_bias = (grad_enabled and wanted for wanted in ctx.needs_input_grad[:3])
        exact = torch.promote_types(dtype, torch.float32)  # the type of losses, gradients and sums
        with torch.autocast(hidden.device.type, enabled=False):
            matrix, shift = weight.to(dtype), None if bias is None else bias.to(dtype)
            hidden_grad = torch.empty_like(hidden, dtype=exact) if wants_hidden else None
            head = HeadGradient(weight, exact) if wants_weight else None
            bias_grad = hidden.new_zeros(len(weight), dtype=exact) if wants_bias else None
            totals = hidden.new_zeros(1 + len(loss.metrics), dtype=exact)
            # memory is taken once: handing it back and getting it again costs a CPU more than the softmax does
            most = balanced(len(hidden), chunk_size)
            spaces = [hidden.new_empty((most, len(weight)), dtype=exact) for _ in range(2)]
            narrow = None if dtype == exact else hidden.new_empty((most, len(weight)), dtype=dtype)
            for part in chunks(len(hidden), most):
                inputs = hidden[part].to(dtype)  # (chunk, hidden)
                logits, scratch = (space[: len(inputs)] for space in spaces)  # (chunk, vocabulary)
                product = logits if narrow is None else narrow[: len(inputs)]
                if shift is None:
                    torch.mm(inputs, matrix.t(), out=product)
                else:
                    torch.addmm(shift, inputs, matrix.t(), out=product)
                if narrow is not None:
                    logits.copy_(product)
                mine = None if weights is None else weights[part]
                found = loss(transform.forward_(logits), targets[part], scratch, transform.softcap is not None, mine)
                totals += torch.stack([found.total, *(found.sums[name] for name in loss.metrics)])
                if not (wants_hidden or wants_weight or wants_bias):
                    continue
                gradient = transform.backward_(found.gradient, logits)
                if bias_grad is not None:
                    bias_grad.addmv_(gradient.t(), found.scale[:, 0])
                if narrow is not None:
                    gradient = product.copy_(gradient)
                if hidden_grad is not None:
                    torch.mul(gradient @ matrix, found.scale, out=hidden_grad[part])
                if head is not None:
                    head.add(gradient, inputs * found.scale.to(dtype))
        ctx.save_for_backward(hidden_grad, None if head is None else head.total(), bias_grad)
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        results = tuple(value.clone() for value in totals)
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [
            None if saved is None else _scaled(saved, scale).to(dtype)
            for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*gradients, None, None, None, None, None, None, None)


class _LogitsLoss(Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, loss: TokenLoss, weights: Tensor | None
    ) -> tuple[Tensor, ...]:
        exact = torch.promote_types(logits.dtype, torch.float32)
        space = torch.empty(logits.shape, dtype=exact, device=logits.device)
        found = loss(logits.to(exact), targets, space, logits.dtype == exact, weights)
        ctx.save_for_backward(found.gradient.mul_(found.scale) if ctx.needs_input_grad[0] else None)
        ctx.dtype = logits.dtype
        results = (found.total, *(found.sums[name].to(exact) for name in loss.metrics))
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, None, None, None]:
        (saved,) = ctx.saved_tensors
        return None if saved is None else _scaled(saved, scale).to(ctx.dtype), None, None, None


class HeadGradient:
    """Sum of the head's gradient over chunks, in single precision at least."""

    def __init__(self, weight: Tensor, exact: torch.dtype) -> None:
        self._sum = torch.empty(weight.shape, dtype=exact, device=weight.device)
        self._first = True

    def add(self, gradient: Tensor, inputs: Tensor) -> None:
        """Add ``gradient.t() @ inputs`` of shapes (chunk, vocabulary) and (chunk, hidden)."""
        if gradient.dtype == self._sum.dtype:
            torch.addmm(self._sum, gradient.t(), inputs, beta=0 if self._first else 1, out=self._sum)
        else:
            # no product of narrow matrices adds to a wide one, and adding across types is slow on a CPU
            for start in range(0, len(self._sum), _ROWS_AT_ONCE):
                rows = slice(start, start + _ROWS_AT_ONCE)
                product = gradient[:, rows].t() @ inputs
                if self._first:
                    self._sum[rows].copy_(product)
                else:
                    self._sum[rows].add_(product.to(self._sum.dtype))
        self._first = False

    def total(self) -> Tensor:
        """Return the sum, shape (vocabulary, hidden)."""
        return self._sum.zero_() if self._first else self._sum


def balanced(count: int, most: int) -> int:
    """Return the size of equal chunks that hold at most so many tokens."""
    return -(-count // max(1, -(-count // most)))


def chunks(count: int, size: int) -> Iterator[slice]:
    """Yield the chunks of so many tokens."""
    return (slice(start, min(start + size, count)) for start in range(0, count, max(1, size)))


def _scaled(saved: Tensor, scale: Tensor) -> Tensor:
    """Scale a gradient, in place where backward runs once: the head's may be the largest tensor of a step."""
    return saved * scale if keeps_graph() else saved.mul_(scale)
