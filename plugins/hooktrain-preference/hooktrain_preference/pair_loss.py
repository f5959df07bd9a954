"""The loss of a micro-batch of pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from hooktrain_sft import Extras, TokenLogProbs
from torch import Tensor, nn

from hooktrain import LossSum
from hooktrain_preference.pair_losses import Pairs, Terms

__all__ = ["REFERENCE", "PairLoss"]

REFERENCE = "reference_log_probs"
"""Key of a micro-batch with what :meth:`PairLoss.answers` returns for the reference."""
_OWN = (REFERENCE, "answer_lengths", "token_weights", "num_target_tokens", "needed_outputs")
"""Keys of a micro-batch that the model does not get."""


class PairLoss:
    """``loss(model, batch, denominator)``: the sum of a loss over pairs, with rewards to log.

    Args:
        terms: from pairs to their losses and rewards.
        chunk_size: tokens that the LM head processes at a time; None chooses by the size of the vocabulary.
    """

    def __init__(self, terms: Callable[[Pairs], Terms], chunk_size: int | None = None) -> None:
        self._terms = terms
        self._log_probs = TokenLogProbs(chunk_size)

    def __call__(self, model: nn.Module, batch: Mapping[str, Any], denominator: float) -> LossSum:
        """Run the model on a micro-batch.

        Args:
            model: the model, wrapped or not.
            batch: from :func:`hooktrain_preference.collate_pairs`, on the model's device. Without
                ``reference_log_probs`` the reference finds all answers equally likely.
            denominator: the number of pairs; with 0 nothing is trained.

        Returns:
            The sum of the loss, and those of ``rewards/chosen``, ``rewards/rejected``, ``rewards/margins``,
            ``rewards/accuracies``, ``logps/chosen`` and ``logps/rejected``.
        """
        extras = Extras(tuple(batch.get("needed_outputs", ())))
        answers = self.answers(model, batch, denominator, extras)
        reference = batch.get(REFERENCE)
        reference = torch.zeros_like(answers) if reference is None else reference
        tokens = self._tokens(batch, answers)
        values = [part for each in (answers, reference, tokens) for part in (each[::2], each[1::2])]
        losses, chosen, rejected = self._terms(Pairs(*values))
        sums = {
            "rewards/chosen": chosen.sum(),
            "rewards/rejected": rejected.sum(),
            "rewards/margins": (chosen - rejected).sum(),
            "rewards/accuracies": (chosen > rejected).sum(),
            "logps/chosen": answers[::2].sum(),
            "logps/rejected": answers[1::2].sum(),
        }
        total = losses.sum() if denominator else answers.sum() * 0.0
        logged = {name: value.detach() for name, value in sums.items()}
        return LossSum(total, denominator, logged, "pairs", extras.terms, extras.outputs)

    def answers(
        self, model: nn.Module, batch: Mapping[str, Any], denominator: float, extras: Extras | None = None
    ) -> Tensor:
        """Return the log-probability of each answer, chosen and rejected alternating, shape (2 * pairs,).

        ``extras`` takes what plugins ask for of the model, and its router's loss; a reference has none.
        """
        lengths: Sequence[int] = batch["answer_lengths"]
        number = sum(lengths) if denominator else 0
        inputs = {name: value for name, value in batch.items() if name not in _OWN}
        found = self._log_probs(model, inputs, number, extras, denominator)
        if not number:
            return found.sum().expand(len(lengths))
        return self._summed(found * self._weights(batch, number), lengths)

    @staticmethod
    def _weights(batch: Mapping[str, Any], number: int) -> Tensor | float:
        """Return the weights of the trained tokens, shape (number,); 1 where the data have none."""
        if "token_weights" not in batch:
            return 1.0
        labels = batch["labels"].reshape(-1)
        positions = torch.nonzero_static(labels != -100, size=number, fill_value=0)[:, 0]
        weights: Tensor = batch["token_weights"].reshape(-1).index_select(0, positions)
        return weights

    @staticmethod
    def _summed(values: Tensor, lengths: Sequence[int]) -> Tensor:
        return torch.stack([part.sum() for part in torch.split(values, list(lengths))])

    def _tokens(self, batch: Mapping[str, Any], answers: Tensor) -> Tensor:
        """Return the tokens of each answer, or the sum of their weights, shape (2 * pairs,)."""
        lengths: Sequence[int] = batch["answer_lengths"]
        weights = self._weights(batch, sum(lengths))
        if isinstance(weights, Tensor):
            return self._summed(weights, lengths).to(answers.dtype)
        made = torch.tensor([max(1, length) for length in lengths], dtype=answers.dtype)
        return made.to(answers.device, non_blocking=True)
