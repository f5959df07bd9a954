"""Per-token losses from a chunk of logits, with the gradient of the logits."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import attrs
import torch
from torch import Tensor

from hooktrain import ModelError

__all__ = ["IGNORE_INDEX", "ChunkLoss", "CrossEntropy", "Differentiated", "TokenLoss"]

IGNORE_INDEX = -100
"""Target of a token that carries no loss."""


class ChunkLoss(NamedTuple):
    """The loss of a chunk of tokens.

    Attributes:
        total: summed over the tokens that have a target, shape ().
        sums: metrics, summed over the same tokens, each of shape ().
        gradient: of ``total`` with respect to the logits without the factor ``scale``, shape (tokens, vocabulary);
            in the scratch space that was passed.
        scale: factor on each token's gradient, shape (tokens, 1); cheaper to apply after the matrix product.
    """

    total: Tensor
    sums: Mapping[str, Tensor]
    gradient: Tensor
    scale: Tensor


class TokenLoss(Protocol):
    """Function from a chunk of logits to a :class:`ChunkLoss`; called without grad mode.

    Attributes:
        metrics: the names of ``sums``, the same in every call.
    """

    @property
    def metrics(self) -> tuple[str, ...]: ...

    def __call__(
        self, logits: Tensor, targets: Tensor, scratch: Tensor, keep_logits: bool, weights: Tensor | None = None
    ) -> ChunkLoss:
        """Compute the loss of a chunk and its gradient.

        Args:
            logits: in single precision at least, shape (tokens, vocabulary).
            targets: token ids, or -100 for no loss, shape (tokens,).
            scratch: tensor like ``logits`` to compute in; becomes the gradient.
            keep_logits: False allows to overwrite ``logits`` as well.
            weights: factors on each token's loss and metrics, shape (tokens,); None where all are 1.
        """


@attrs.frozen
class CrossEntropy:
    """Softmax cross-entropy in as few passes over a chunk of logits as possible.

    Attributes:
        label_smoothing: share of the target's probability that is distributed evenly over the vocabulary.
        z_loss: factor of the squared log of the softmax's denominator, added for each token.
        weighted_by_probability: whether a token's cross-entropy is multiplied by its detached probability, as in
            Dynamic Fine-Tuning; the z-loss is not.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    weighted_by_probability: bool = False

    @property
    def metrics(self) -> tuple[str, ...]:
        plain = self == CrossEntropy()
        names = ("token_accuracy", "entropy") if plain else ("token_accuracy", "entropy", "cross_entropy")
        return (*names, "z_loss") if self.z_loss else names

    def __call__(
        self, logits: Tensor, targets: Tensor, scratch: Tensor, keep_logits: bool, weights: Tensor | None = None
    ) -> ChunkLoss:
        seen = _Softmax(logits, targets, scratch, weights)
        surprise = seen.log_denominator - seen.goal_logit  # minus the log of the target's probability, (tokens, 1)
        loss, smoothing = surprise, self.label_smoothing / logits.shape[1]
        if self.label_smoothing:
            loss = seen.log_denominator - (1 - self.label_smoothing) * seen.goal_logit
            loss = loss - smoothing * logits.sum(-1, keepdim=True)
        weight = seen.weight.to(logits.dtype)  # (tokens, 1)
        if self.weighted_by_probability:
            weight = weight * torch.exp(-surprise)
        total = (loss * weight).sum()
        sums = seen.sums(logits, keep_logits)
        if "cross_entropy" in self.metrics:
            sums["cross_entropy"] = (surprise * seen.weight).sum()
        # the gradient is weight * (softmax - smoothed one-hot), and with the z-loss 2 * z * log_denominator * softmax
        gradient, share = seen.probabilities, torch.full_like(surprise, 1 - self.label_smoothing)
        if self.z_loss:
            sums["z_loss"] = (seen.log_denominator.square() * seen.weight).sum()
            total = total + self.z_loss * sums["z_loss"]
            gradient.mul_(weight + 2 * self.z_loss * seen.log_denominator * seen.weight)
            gradient.scatter_add_(1, seen.goal, -share * weight)
            if smoothing:
                gradient.sub_(weight * smoothing)
            return ChunkLoss(total, sums, gradient, torch.ones_like(weight))
        gradient.scatter_add_(1, seen.goal, -share)
        if smoothing:
            gradient.sub_(smoothing)
        return ChunkLoss(total, sums, gradient, weight)


@attrs.frozen
class Differentiated:
    """A loss from a function of logits, differentiated by autograd.

    Attributes:
        function: from logits (tokens, vocabulary) and targets (tokens,), all of them token ids, to the loss of each
            token (tokens,).
    """

    function: Callable[[Tensor, Tensor], Tensor]

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("token_accuracy", "entropy")

    def __call__(
        self, logits: Tensor, targets: Tensor, scratch: Tensor, keep_logits: bool, weights: Tensor | None = None
    ) -> ChunkLoss:
        supervised = targets != IGNORE_INDEX
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            each = self.function(leaf, targets.clamp(min=0))
            if not isinstance(each, Tensor) or each.shape != targets.shape:
                returned = f"shape {tuple(each.shape)}" if isinstance(each, Tensor) else type(each).__name__
                given = self.function.func if isinstance(self.function, functools.partial) else self.function
                named = given if inspect.isroutine(given) else type(given)
                raise ModelError(
                    f"loss: the function {named.__module__}.{named.__qualname__} returned {returned}, expected the loss"
                    f" of each token, shape {tuple(targets.shape)}; remove the sum or mean"
                )
            each = each if weights is None else each * weights
            total = torch.where(supervised, each, 0.0).sum()
            (gradient,) = torch.autograd.grad(total, leaf)
        sums = _Softmax(logits, targets, scratch, weights).sums(logits, keep_logits)
        return ChunkLoss(total.detach(), sums, gradient, torch.ones_like(gradient[:, :1]))


class _Softmax:
    """The softmax of a chunk, in the scratch space, and values of shape (tokens, 1) that come with it."""

    def __init__(self, logits: Tensor, targets: Tensor, scratch: Tensor, weights: Tensor | None) -> None:
        supervised = targets != IGNORE_INDEX
        self.weight = (supervised if weights is None else supervised * weights)[:, None]
        self.goal = targets.clamp(min=0)[:, None]
        self.goal_logit = logits.gather(1, self.goal)
        top, self.guess = logits.max(1, keepdim=True)
        self.probabilities = torch.softmax(logits, 1, out=scratch)  # (tokens, vocabulary)
        # the likeliest token has a probability of 1 / vocabulary at least, so its log is exact
        self.log_denominator = top - self.probabilities.gather(1, self.guess).log()

    def sums(self, logits: Tensor, keep_logits: bool) -> dict[str, Tensor]:
        """Return the number of right predictions, and the sum of their entropies in nats."""
        expected = torch.mul(self.probabilities, logits, out=None if keep_logits else logits).sum(1, keepdim=True)
        return {
            "token_accuracy": ((self.guess == self.goal) * self.weight).sum(),
            "entropy": ((self.log_denominator - expected) * self.weight).sum(),
        }
