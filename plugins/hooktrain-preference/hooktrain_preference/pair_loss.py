"""The loss of a micro-batch of pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hooktrain import LossSum
from hooktrain_preference.answer_log_probs import AnswerLogProbs
from hooktrain_preference.pair_losses import Pairs, Terms
from hooktrain_preference.rows import REFERENCE

__all__ = ["PairLoss"]


class PairLoss:
    """``loss(model, batch, denominator)``: the sum of a loss over pairs, with rewards to log.

    Args:
        terms: from pairs to their losses and rewards.
        chunk_size: tokens that the LM head processes at a time; None chooses by the size of the vocabulary.
        share_prompts: whether prompts are computed once for both answers where the model's attention allows it.
    """

    def __init__(
        self, terms: Callable[[Pairs], Terms], chunk_size: int | None = None, share_prompts: bool = True
    ) -> None:
        self._terms = terms
        self.log_probs = AnswerLogProbs(chunk_size, share_prompts)

    def __call__(self, model: nn.Module, batch: Mapping[str, Any], denominator: float) -> LossSum:
        """Run the model on a micro-batch.

        Args:
            model: the model, wrapped or not.
            batch: from :func:`hooktrain_preference.collate_pairs`, on the model's device. Without
                ``reference_log_probs`` the reference finds all answers equally likely.
            denominator: the number of pairs; with 0 nothing is trained.

        Returns:
            The sum of the loss, and those of ``rewards/chosen``, ``rewards/rejected``, ``rewards/margins``,
            ``rewards/accuracies``, ``logps/chosen`` and ``logps/rejected``, and of what the terms log.
        """
        answers = self.answers(model, batch, denominator)
        reference = batch.get(REFERENCE)
        reference = torch.zeros_like(answers) if reference is None else reference
        tokens = self.log_probs.tokens(batch, answers)
        values = [part for each in (answers, reference, tokens) for part in (each[::2], each[1::2])]
        losses, chosen, rejected, *more = self._terms(Pairs(*values))
        sums = {
            "rewards/chosen": chosen.sum(),
            "rewards/rejected": rejected.sum(),
            "rewards/margins": (chosen - rejected).sum(),
            "rewards/accuracies": (chosen > rejected).sum(),
            "logps/chosen": answers[::2].sum(),
            "logps/rejected": answers[1::2].sum(),
            **{name: value.sum() for each in more for name, value in each.items()},
        }
        total = losses.sum() if denominator else answers.sum() * 0.0
        return LossSum(total, denominator, {name: value.detach() for name, value in sums.items()}, "pairs")

    def answers(self, model: nn.Module, batch: Mapping[str, Any], denominator: float) -> Tensor:
        """Return the log-probability of each answer, chosen and rejected alternating, shape (2 * pairs,)."""
        return self.log_probs(model, batch, denominator)
