"""The LM head and cross-entropy together, a chunk of tokens at a time, so that logits never all exist at once."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

__all__ = ["LogitTransform", "cross_entropy_sum", "linear_cross_entropy"]

IGNORE_INDEX = -100


@attrs.frozen
class LogitTransform:
    """What some models do to the output of their LM head.

    Attributes:
        multiplier: factor on all logits.
        softcap: logits are squeezed into (-softcap, softcap) with tanh; None leaves them.
    """

    multiplier: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, config: Any) -> LogitTransform:
        """Read from a transformers config: Cohere, Granite, Falcon-H1 and Gemma have names of their own for it."""
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        multiplier = float(getattr(text, "logit_scale", None) or 1.0)
        multiplier *= float(getattr(text, "lm_head_multiplier", None) or 1.0)
        multiplier /= float(getattr(text, "logits_scaling", None) or 1.0)
        cap = getattr(text, "final_logit_softcapping", None)
        return cls(multiplier, float(cap) if cap else None)

    def __call__(self, logits: Tensor) -> Tensor:
        """Transformed logits, of the same shape."""
        if self.multiplier != 1.0:
            logits = logits * self.multiplier
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def backward_(self, gradient: Tensor, transformed: Tensor) -> Tensor:
        """Turn the gradient of the transformed logits into that of the head's output, in place."""
        if self.softcap is not None:
            gradient *= 1 - (transformed / self.softcap).square_()
        return gradient.mul_(self.multiplier) if self.multiplier != 1.0 else gradient


def at_least_float32(values: Tensor) -> Tensor:
    """In single precision, unless it is double already."""
    return values if values.dtype == torch.float64 else values.float()


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of the cross-entropy in single precision at least.

    Args:
        logits: of any floating type, shape (tokens, vocabulary).
        targets: token ids, or -100 for no loss, shape (tokens,).

    Returns:
        Shape ().
    """
    return functional.cross_entropy(at_least_float32(logits), targets, ignore_index=IGNORE_INDEX, reduction="sum")


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    transform: LogitTransform = LogitTransform(),
    chunk_size: int = 1024,
) -> Tensor:
    """Sum of the cross-entropy of a linear head, with gradients of everything that needs them.

    The gradient is computed together with the loss, while a chunk's logits are there; backward only scales it. Matrix
    products run in the autocast type, the softmax and the sums over chunks in single precision at least.

    Args:
        hidden: what the head sees, shape (tokens, hidden).
        weight: shape (vocabulary, hidden).
        bias: shape (vocabulary,), or None.
        targets: token ids, or -100 for no loss, shape (tokens,).
        transform: what the model does to its logits.
        chunk_size: tokens at a time.

    Returns:
        Shape ().
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    needs_gradient = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (hidden, weight, bias)
    )
    apply: Any = _LinearCrossEntropy.apply
    total: Tensor = apply(hidden, weight, bias, targets, transform, chunk_size, dtype, needs_gradient)
    return total


class _LinearCrossEntropy(Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        transform: LogitTransform,
        chunk_size: int,
        dtype: torch.dtype,
        needs_gradient: bool,
    ) -> Tensor:
        wants_hidden, wants_weight, wants_bias = (needs_gradient and wanted for wanted in ctx.needs_input_grad[:3])
        exact = torch.promote_types(dtype, torch.float32)  # the type of sums
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = weight.to(dtype)  # (vocabulary, hidden)
            total = torch.zeros((), dtype=exact, device=hidden.device)
            hidden_grad = torch.empty_like(hidden) if wants_hidden else None
            weight_grad = torch.zeros(weight.shape, dtype=exact, device=weight.device) if wants_weight else None
            bias_grad = torch.zeros(weight.shape[:1], dtype=exact, device=weight.device) if wants_bias else None
            for start in range(0, len(hidden), chunk_size):
                part = slice(start, start + chunk_size)
                inputs = hidden[part].to(dtype)  # (chunk, hidden)
                logits = functional.linear(inputs, matrix, None if bias is None else bias.to(dtype))
                logits = transform(logits.to(exact))  # (chunk, vocabulary)
                supervised = targets[part] != IGNORE_INDEX
                goal = targets[part].clamp(min=0)[:, None]  # (chunk, 1)
                norm = torch.logsumexp(logits, -1, keepdim=True)  # (chunk, 1)
                total += ((norm - logits.gather(-1, goal))[:, 0] * supervised).sum()
                if not (wants_hidden or wants_weight or wants_bias):
                    continue
                # softmax minus one-hot, zero where there is no loss
                gradient = (logits - norm).exp_() if transform.softcap is not None else logits.sub_(norm).exp_()
                gradient.scatter_add_(-1, goal, -torch.ones_like(norm)).mul_(supervised[:, None])
                gradient = transform.backward_(gradient, logits)
                if bias_grad is not None:
                    bias_grad += gradient.sum(0)
                narrow = gradient.to(dtype)
                if hidden_grad is not None:
                    hidden_grad[part] = narrow @ matrix
                if weight_grad is not None:
                    if dtype == exact:
                        weight_grad.addmm_(narrow.t(), inputs)
                    else:
                        weight_grad += narrow.t() @ inputs
        ctx.save_for_backward(
            hidden_grad,
            None if weight_grad is None else weight_grad.to(weight.dtype),
            None if bias_grad is None or bias is None else bias_grad.to(bias.dtype),
        )
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [None if saved is None else saved * scale.to(saved.dtype) for saved in ctx.saved_tensors]
        return (*gradients, None, None, None, None, None)
