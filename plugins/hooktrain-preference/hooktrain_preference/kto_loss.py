"""The loss of a micro-batch of single answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hooktrain import LossSum
from hooktrain_preference.answer_log_probs import AnswerLogProbs
from hooktrain_preference.loss_config import KTOLossConfig
from hooktrain_preference.rows import REFERENCE

__all__ = ["KTOLoss"]


class KTOLoss:
    """``loss(model, batch, denominator)``: the sum of the loss over single answers.

    Args:
        config: the recipe's ``loss``.
        note: called with each micro-batch and the rewards and log-probabilities of its answers, shape (answers,).
    """

    def __init__(self, config: KTOLossConfig, note: Callable[[Mapping[str, Any], Tensor, Tensor], None]) -> None:
        self._config, self._note = config, note
        self.log_probs = AnswerLogProbs(config.chunk_size)

    def __call__(self, model: nn.Module, batch: Mapping[str, Any], denominator: float) -> LossSum:
        """Run the model on a micro-batch.

        Args:
            model: the model, wrapped or not.
            batch: from :func:`hooktrain_preference.collate_unpaired`, on the model's device. Without
                ``reference_log_probs`` the reference finds all answers equally likely; ``kl`` is the estimate of the KL
                divergence, shape (), and 0 where it is missing.
            denominator: the number of answers; with 0 nothing is trained.

        Returns:
            The sum of the loss, and that of ``kl``.
        """
        config = self._config
        answers = self.answers(model, batch, denominator)
        reference = batch.get(REFERENCE)
        ratios = answers if reference is None else answers - reference
        kl: Tensor = batch.get("kl", answers.new_zeros(()))
        desirable = batch["desirable"]
        if config.estimates_kl:
            losses = torch.where(
                desirable,
                config.desirable_weight * (1 - (config.beta * (ratios - kl)).sigmoid()),
                config.undesirable_weight * (1 - (config.beta * (kl - ratios)).sigmoid()),
            )
        else:
            losses = torch.where(
                desirable,
                config.desirable_weight * (1 - (config.beta * ratios).sigmoid()),
                config.undesirable_weight * (config.beta * ratios).sigmoid(),
            )
        if denominator:
            self._note(batch, config.beta * ratios.detach(), answers.detach())
        total = losses.sum() if denominator else answers.sum() * 0.0
        sums = {"kl": kl * denominator} if config.estimates_kl else {}
        return LossSum(total, denominator, {name: value.detach() for name, value in sums.items()}, "answers")

    def answers(self, model: nn.Module, batch: Mapping[str, Any], denominator: float) -> Tensor:
        """Return the log-probability of each answer, shape (answers,)."""
        return self.log_probs(model, batch, denominator)
