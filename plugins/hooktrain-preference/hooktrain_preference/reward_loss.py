"""The loss of a reward model: a score for each answer, from the last token that a classifier reads it off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from hooktrain_sft import innermost, replaced_forward
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from hooktrain import LossSum, ModelError
from hooktrain_preference.answer_log_probs import OWN_KEYS
from hooktrain_preference.compat import decoder_and_scores, number_of_labels, padding_id, pooled_scores
from hooktrain_preference.loss_config import RewardLossConfig

__all__ = ["RewardLoss", "check_scores", "require_scores"]

_LARGEST = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Largest difference from a model's own score, as a share of it; 0.05 in less than float32."""


class RewardLoss:
    """``loss(model, batch, denominator)``: the sum of the Bradley-Terry loss over pairs, with scores to log."""

    def __init__(self, config: RewardLossConfig) -> None:
        self._config = config

    def __call__(self, model: nn.Module, batch: Mapping[str, Any], denominator: float) -> LossSum:
        """Run the model on a micro-batch.

        Args:
            model: a classifier with one label, wrapped or not.
            batch: from :func:`hooktrain_preference.collate_rewards`, on the model's device. An answer of which no token
                is trained has the score 0.
            denominator: the number of pairs; with 0 nothing is trained.

        Returns:
            The sum of the loss, and those of ``rewards/chosen``, ``rewards/rejected``, ``rewards/margins`` and
            ``rewards/accuracies``.
        """
        scores = self.scores(model, batch)
        if not all(batch["answer_lengths"]):
            there = torch.tensor([float(length > 0) for length in batch["answer_lengths"]], dtype=scores.dtype)
            scores = scores * there.to(scores.device, non_blocking=True)
        chosen, rejected = scores[::2], scores[1::2]
        margins: Tensor | float = batch.get("margins", 0.0)
        losses = -logsigmoid(chosen - rejected - margins)
        if self._config.center_rewards_coefficient:
            losses = losses + self._config.center_rewards_coefficient * (chosen + rejected) ** 2
        sums = {
            "rewards/chosen": chosen.sum(),
            "rewards/rejected": rejected.sum(),
            "rewards/margins": (chosen - rejected).sum(),
            "rewards/accuracies": (chosen > rejected).sum(),
        }
        total = losses.sum() if denominator else scores.sum() * 0.0
        return LossSum(total, denominator, {name: value.detach() for name, value in sums.items()}, "pairs")

    @staticmethod
    def scores(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Return the score of each document of a micro-batch, in single precision at least, shape (documents,).

        Raises:
            ModelError: ranks share the tokens of a sequence.
            TypeError: the model is no classifier.
        """
        bare = innermost(model)
        parts = decoder_and_scores(bare)
        if parts is None:
            raise TypeError(f"given a {type(bare).__name__}, expected a classifier; call require_scores first")
        if "sequence_parallel" in batch:
            raise ModelError(
                "strategy.sequence_parallel: a reward model scores sequences, of which no rank has all tokens; remove"
                " sequence_parallel"
            )
        decoder, head = parts
        given = {name: value for name, value in batch.items() if name not in (*OWN_KEYS, "labels")}
        places = _scored(batch["input_ids"], batch["document_lengths"], padding_id(bare))

        def forward(**inputs: Any) -> Tensor:
            inputs = {name: value for name, value in inputs.items() if name in given}  # adapters add others
            hidden = decoder(**inputs, use_cache=False).last_hidden_state  # (sequences, tokens, hidden)
            found: Tensor = head(hidden.reshape(-1, hidden.shape[-1]).index_select(0, places))  # (documents, labels)
            return found

        with replaced_forward(bare, forward):
            made: Tensor = model(**given)
        return made[:, 0].to(torch.promote_types(made.dtype, torch.float32))


def _scored(ids: Tensor, lengths: Sequence[int], padding: int | None) -> Tensor:
    """Return the place of the last token of each document that is not padding, the first of one that has no other.

    Args:
        ids: shape (sequences, tokens).
        lengths: tokens of each document, in the order of the flattened ids.
        padding: token that a classifier does not read its labels off, as of an end of sequence that pads too.
    """
    sizes = torch.tensor(lengths)
    ends = sizes.cumsum(0)
    first = (ends - sizes).to(ids.device, non_blocking=True)
    if padding is None:
        return (ends - 1).to(ids.device, non_blocking=True)
    document = torch.repeat_interleave(sizes).to(ids.device, non_blocking=True)
    flat = ids.reshape(-1)
    place = torch.where(flat != padding, torch.arange(len(flat), device=ids.device), 0)
    return first.scatter_reduce(0, document, place, "amax")


def require_scores(model: nn.Module) -> None:
    """Raise a ModelError for a model that is no classifier with one label."""
    bare = innermost(model)
    if decoder_and_scores(bare) is None or number_of_labels(bare) != 1:
        raise ModelError(
            f"model: given a {type(bare).__name__}, expected one that AutoModelForSequenceClassification loads, with"
            " one label; write model: {type: reward, name_or_path: ...}, or pass such a model"
        )


def check_scores(model: nn.Module, ids: Tensor) -> None:
    """Compare the score of a document with the one that the model gives it alone.

    Args:
        model: the model, wrapped or not, in evaluation mode.
        ids: of the document, shape (1, tokens).

    Raises:
        ModelError: they differ, as where a model reads its labels off the first token.
    """
    length = ids.shape[1]
    batch = {"input_ids": ids, "position_ids": torch.arange(length, device=ids.device)[None]}
    with torch.no_grad():
        ours = float(RewardLoss.scores(model, {**batch, "document_lengths": (length,)})[0])
        own = float(pooled_scores(model(input_ids=ids, use_cache=False))[0, 0])
    dtype = next(model.parameters()).dtype
    exact = not torch.is_autocast_enabled(ids.device.type)
    if abs(ours - own) > (_LARGEST.get(dtype, 0.05) if exact else 0.05) * max(abs(own), 1e-2):
        raise ModelError(
            f"model: the score of a document is {ours:.6g}, and {own:.6g} by the model's own forward pass, as where it"
            " does not read its label off the last token; give a causal language model"
        )
