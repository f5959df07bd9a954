"""The loss ``distill``: both LM heads run on the trained positions together, a chunk at a time."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hooktrain import LossSum, ModelError
from hooktrain_sft.compat import output_size
from hooktrain_sft.distill.config import DistillLossConfig
from hooktrain_sft.distill.divergence import DistillTokenLoss, StoredTeacher, Teacher, UniformTeacher
from hooktrain_sft.loss.chunked_linear import Sums, automatic_chunk_size, linear_loss, logits_loss
from hooktrain_sft.loss.lm_head import HeadedForward
from hooktrain_sft.loss.logit_transform import LogitTransform
from hooktrain_sft.loss.model_inspection import accepted, innermost, logit_transform, logits_of
from hooktrain_sft.loss.model_outputs import Extras
from hooktrain_sft.loss.padded_documents import documents_given
from hooktrain_sft.loss.router_loss import RouterLoss
from hooktrain_sft.loss.supervised_positions import Targets, supervised
from hooktrain_sft.loss.token_loss import CrossEntropy

__all__ = ["STORED", "TEACHER", "DistillLoss", "require_complete_sequences", "take_teacher"]

TEACHER = "teacher"
"""Key of a micro-batch with what :class:`hooktrain_sft.distill.teacher.TeacherForward` returned."""
STORED = ("teacher_ids", "teacher_log_probs", "teacher_rest")
"""Keys of a micro-batch with a teacher's likeliest tokens, as :class:`StoredTeacher` has them, of shape (1, ...)."""

Runner = Callable[[nn.Module, Mapping[str, Any], Targets, Teacher, Extras], tuple[Tensor, Sums]]


class DistillLoss:
    """``loss(model, batch, denominator)``: the sum of the divergence from a teacher, mixed with that of the labels.

    Args:
        config: the recipe's ``loss``.
    """

    def __init__(self, config: DistillLossConfig) -> None:
        self._config = config
        self._runners: weakref.WeakKeyDictionary[nn.Module, Runner] = weakref.WeakKeyDictionary()

    def __call__(self, model: nn.Module, batch: Mapping[str, Any], denominator: float) -> LossSum:
        """Run the model on a micro-batch.

        Args:
            model: the model, wrapped or not.
            batch: as :class:`hooktrain_sft.loss.selective_loss.SelectiveLoss` takes it, with ``teacher``, or with what
                was computed ahead. Without either, as in the check of a model before its first step, every token is
                equally likely to the teacher.
            denominator: the number of trained tokens, or the sum of their weights.

        Returns:
            The sum of the loss; and those of ``token_accuracy``, ``entropy``, ``cross_entropy`` and the divergence,
            under its name.

        Raises:
            ModelError: the model gives no logits, or ranks share the tokens of a sequence.
        """
        bare, inputs = innermost(model), dict(batch)
        require_complete_sequences(inputs)
        extras, targets = Extras(tuple(inputs.pop("needed_outputs", ()))), Targets.of(inputs, denominator)
        teacher = take_teacher(inputs, targets.number)
        if bare not in self._runners:
            self._runners[bare] = self._runner(bare, inputs)
        with documents_given(inputs):
            total, sums = self._runners[bare](model, inputs, targets, teacher, extras)
        unit = "tokens" if targets.weights is None else "weighted tokens"
        return LossSum(total, denominator, sums, unit, extras.terms, extras.outputs)

    def _runner(self, bare: nn.Module, batch: Mapping[str, Any]) -> Runner:
        transform, router = logit_transform(bare, batch), RouterLoss.of(bare)
        if transform is None:
            return partial(_from_logits, self._config, router)
        return _HeadedStudent(bare, transform, self._config, router).run


def require_complete_sequences(batch: Mapping[str, Any]) -> None:
    if "sequence_parallel" in batch:
        raise ModelError(
            "strategy.sequence_parallel: the loss distill compares each token with a teacher's, which runs on complete"
            " sequences; remove sequence_parallel"
        )


def take_teacher(inputs: dict[str, Any], number: int) -> Teacher:
    """Take what a micro-batch has of a teacher out of it."""
    beside: Teacher | None = inputs.pop(TEACHER, None)
    stored = [inputs.pop(name, None) for name in STORED]
    if beside is not None:
        return beside
    if stored[0] is None:
        return UniformTeacher()
    ids, log_probs, rest = (each[0, : max(number, 1)] for each in stored)  # one without a target stands for none
    return StoredTeacher(ids, log_probs, rest)


class _HeadedStudent(HeadedForward):
    """Computes the loss in the model's forward pass."""

    def __init__(
        self, model: nn.Module, transform: LogitTransform, config: DistillLossConfig, router: RouterLoss | None
    ) -> None:
        super().__init__(model, CrossEntropy(), transform, config.chunk_size, None, router)
        self._config = config

    def run(
        self, model: nn.Module, batch: Mapping[str, Any], targets: Targets, teacher: Teacher, extras: Extras
    ) -> tuple[Tensor, Sums]:
        self._teacher = teacher
        try:
            return self(model, batch, targets, extras)
        finally:
            del self._teacher

    def _size(self, vocabulary: int, device: str) -> int:
        # two heads and what is between them need twice the memory of one head
        return self._chunk_size or max(16, automatic_chunk_size(vocabulary, device) // 2)

    def _fused(self, hidden: Tensor, head: Any, targets: Tensor, weights: Tensor | None) -> tuple[Tensor, Sums]:
        token_loss, size = (
            DistillTokenLoss(self._config, self._teacher),
            self._size(len(head.weight), hidden.device.type),
        )
        return linear_loss(hidden, head.weight, head.bias, targets, token_loss, self._transform, size, weights)

    def _called(self, head: nn.Module, hidden: Tensor, targets: Tensor, weights: Tensor | None) -> tuple[Tensor, Sums]:
        config, teacher, transform = self._config, self._teacher, self._transform

        def chunk_loss(at: int, chunk: Tensor, goal: Tensor, factors: Tensor | None = None) -> Tensor:
            total, sums = logits_loss(transform(head(chunk)), goal, DistillTokenLoss(config, teacher, at), factors)
            return torch.stack([total, *sums.values()])

        size = self._size(output_size(head, self._model()), hidden.device.type)
        given = (hidden, targets) if weights is None else (hidden, targets, weights)
        parts = enumerate(zip(*(torch.split(value, size) for value in given), strict=True))
        found = [checkpoint(chunk_loss, number * size, *part, use_reentrant=False) for number, part in parts]
        total, *sums = torch.stack(found).sum(0).unbind()
        names = DistillTokenLoss(config, teacher).metrics
        return total, {name: value.detach() for name, value in zip(names, sums, strict=True)}


def _from_logits(
    config: DistillLossConfig,
    router: RouterLoss | None,
    model: nn.Module,
    batch: Mapping[str, Any],
    targets: Targets,
    teacher: Teacher,
    extras: Extras,
) -> tuple[Tensor, Sums]:
    """Call a model for all of its logits."""
    inputs = {**_without_labels(batch), **extras.arguments(headed=False)}
    output = model(**accepted(innermost(model).forward, inputs))
    positions, goals, weights = supervised(batch["labels"], targets.number, weights=targets.weights)
    logits = logits_of(output)
    logits = logits.reshape(-1, logits.shape[-1]).index_select(0, positions)
    total, sums = logits_loss(logits, goals, DistillTokenLoss(config, teacher), weights)
    extras.take(output)
    extras.add_router(router, output, total, targets.denominator)
    return total, sums


def _without_labels(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if "labels" not in name}
