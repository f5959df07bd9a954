"""Divergences of two distributions with their gradients, and the loss of a chunk of tokens made of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hooktrain_sft.distill.config import DistillLossConfig
from hooktrain_sft.loss.token_loss import IGNORE_INDEX, ChunkLoss

__all__ = ["BesideTeacher", "DistillTokenLoss", "StoredTeacher", "Teacher", "UniformTeacher", "divergence"]

Compared = tuple[Tensor, Tensor]
"""The divergence of each token, shape (tokens, 1), and its gradient with respect to the logits at the temperature, of
shape (tokens, vocabulary)."""


def divergence(kind: str, beta: float, model: Tensor, teacher: Tensor) -> Compared:
    """Return divergences, and their gradients with respect to the numbers that the model's softmax was taken of.

    Args:
        kind: ``forward_kl``, ``reverse_kl`` or ``jsd``.
        beta: the teacher's share of the mixture of ``jsd``.
        model: log-probabilities, shape (tokens, events); overwritten.
        teacher: likewise.
    """
    if kind == "forward_kl":
        likely = teacher.exp()
        each = teacher.sub_(model).mul_(likely).sum(1, keepdim=True)
        return each, model.exp_().sub_(likely)
    if kind == "reverse_kl":
        likely = model.exp()
        ratio = model.sub_(teacher)
        each = torch.mul(ratio, likely, out=teacher).sum(1, keepdim=True)
        return each, ratio.sub_(each).mul_(likely)
    mixture = torch.logaddexp(teacher + math.log(beta), model + math.log1p(-beta))
    likely = teacher.exp()
    of_teacher = teacher.sub_(mixture).mul_(likely).sum(1, keepdim=True)
    torch.exp(model, out=likely)
    ratio = model.sub_(mixture)
    of_model = torch.mul(ratio, likely, out=mixture).sum(1, keepdim=True)
    return beta * of_teacher + (1 - beta) * of_model, ratio.sub_(of_model).mul_(likely).mul_(1 - beta)


class Teacher(Protocol):
    """What a teacher says about the trained tokens of a micro-batch."""

    def compare(self, config: DistillLossConfig, model: Tensor, part: slice) -> Compared:
        """Compare a chunk of tokens.

        Args:
            config: of the loss.
            model: the model's log-probabilities at the temperature, shape (tokens, vocabulary); overwritten.
            part: the tokens of the micro-batch.
        """


class BesideTeacher(NamedTuple):
    """A teacher that has run on the same micro-batch.

    Attributes:
        values: its hidden states at the trained tokens, or its logits, shape (tokens, channels).
        head: makes logits of them, shape (tokens, vocabulary), in a tensor of their own.
    """

    values: Tensor
    head: Callable[[Tensor], Tensor]

    def compare(self, config: DistillLossConfig, model: Tensor, part: slice) -> Compared:
        logits = _as_wide(self.head(self.values[part]).to(model.dtype), model.shape[1]).div_(config.temperature)
        teacher = logits.sub_(logits.logsumexp(1, keepdim=True))
        return divergence(config.divergence, _beta(config), model, teacher)


class StoredTeacher(NamedTuple):
    """A teacher's likeliest tokens, which were computed ahead.

    Attributes:
        ids: the tokens, shape (tokens, k).
        log_probs: their log-probabilities, shape (tokens, k).
        rest: the log of the probability of all other tokens, shape (tokens, 1); minus infinity where there are none.
    """

    ids: Tensor
    log_probs: Tensor
    rest: Tensor

    def compare(self, config: DistillLossConfig, model: Tensor, part: slice) -> Compared:
        ids, teacher = self.ids[part].long(), self.log_probs[part].to(model.dtype)
        chosen = model.gather(1, ids)
        if ids.shape[1] == model.shape[1]:
            each, gradient = divergence(config.divergence, _beta(config), chosen, teacher.clone())
            return each, model.scatter_(1, ids, gradient)
        rest = self.rest[part].to(model.dtype)
        rest = torch.where(rest.isinf(), teacher.min(1, keepdim=True).values, rest)
        others = model.scatter_(1, ids, -math.inf)
        of_others = others.logsumexp(1, keepdim=True)
        events = torch.cat([chosen, of_others], 1), torch.cat([teacher, rest], 1)
        each, by_event = divergence(config.divergence, _beta(config), *events)
        # what raises the others together raises each of them by its share, which is 0 for the chosen ones
        gradient = others.sub_(of_others).exp_().mul_(by_event[:, -1:])
        return each, gradient.scatter_(1, ids, by_event[:, :-1])


class UniformTeacher:
    """A teacher to which every token is equally likely."""

    def compare(self, config: DistillLossConfig, model: Tensor, part: slice) -> Compared:
        teacher = torch.full_like(model, -math.log(model.shape[1]))
        return divergence(config.divergence, _beta(config), model, teacher)


def _beta(config: DistillLossConfig) -> float:
    return 0.5 if config.beta is None else config.beta


def _as_wide(logits: Tensor, width: int) -> Tensor:
    """Return logits with as many columns as the model's, whose embeddings may be padded to another size.

    Tokens that the teacher does not have are to it as unlikely as its least likely one.
    """
    missing = width - logits.shape[1]
    if missing <= 0:
        return logits[:, :width]
    return torch.cat([logits, logits.min(1, keepdim=True).values.expand(-1, missing)], 1)


class DistillTokenLoss:
    """The loss of a chunk of logits, as :class:`hooktrain_sft.loss.token_loss.TokenLoss` describes it.

    It is for one micro-batch, whose chunks it is called with in their order.
    """

    def __init__(self, config: DistillLossConfig, teacher: Teacher, at: int = 0) -> None:
        """Make the loss of a teacher's micro-batch, from its token number ``at`` on."""
        self._config, self._teacher, self._at = config, teacher, at

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("token_accuracy", "entropy", self._config.divergence, "cross_entropy")

    def __call__(
        self, logits: Tensor, targets: Tensor, scratch: Tensor, keep_logits: bool, weights: Tensor | None = None
    ) -> ChunkLoss:
        part = slice(self._at, self._at + len(logits))
        self._at = part.stop
        supervised, goal = targets != IGNORE_INDEX, targets.clamp(min=0)[:, None]
        weight = (supervised if weights is None else supervised * weights)[:, None].to(logits.dtype)  # (tokens, 1)
        log_probs = logits - logits.logsumexp(1, keepdim=True)  # (tokens, vocabulary)
        surprise = -log_probs.gather(1, goal)
        entropy = -torch.mul(log_probs.exp(), log_probs, out=scratch).sum(1, keepdim=True)
        guess = logits.argmax(1, keepdim=True)
        share, temperature = self._config.label_weight, self._config.temperature
        if share:  # the gradient of the cross-entropy
            torch.exp(log_probs, out=scratch).scatter_add_(1, goal, torch.full_like(surprise, -1.0))
        if temperature != 1:
            torch.div(logits, temperature, out=log_probs)
            log_probs.sub_(log_probs.logsumexp(1, keepdim=True))
        each, gradient = self._teacher.compare(self._config, log_probs, part)
        gradient.mul_((1 - share) / temperature)
        if share:
            gradient.add_(scratch, alpha=share)
        sums = {
            "token_accuracy": ((guess == goal) * weight).sum(),
            "entropy": (entropy * weight).sum(),
            self._config.divergence: (each * weight).sum(),
            "cross_entropy": (surprise * weight).sum(),
        }
        total = (((1 - share) * each + share * surprise) * weight).sum()
        return ChunkLoss(total, sums, gradient, weight)
