"""Log-probabilities of the answers of a micro-batch; prompts that two answers share are computed once."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from hooktrain_hf import shares_prefixes
from hooktrain_sft import TokenLogProbs, are_padded, innermost
from torch import Tensor, nn

from hooktrain import ModelError
from hooktrain_preference.collate import MISMATCHED, SHARED
from hooktrain_preference.rows import REFERENCE, SET

__all__ = ["OWN_KEYS", "AnswerLogProbs"]

logger = logging.getLogger(__name__)

OWN_KEYS = frozenset(
    {
        *(REFERENCE, SET, MISMATCHED, *SHARED),
        *("answer_lengths", "token_weights", "num_target_tokens", "desirable", "label_counts", "margins", "kl"),
    }
)
"""Keys of a micro-batch that the model does not get."""
_LARGEST = 1e-3
"""Largest difference of log-probabilities, as a share of the largest, that shared prompts may make in float32."""


class AnswerLogProbs:
    """``log_probs(model, batch, denominator)``: the log-probability of each answer, with a graph.

    Args:
        chunk_size: tokens that the LM head processes at a time; None chooses by the size of the vocabulary.
        share_prompts: whether prompts are computed once for both answers of a pair where the model can do that. The
            first micro-batch is computed in both ways, and prompts are not shared where the results differ.
    """

    def __init__(self, chunk_size: int | None = None, share_prompts: bool = False) -> None:
        self._log_probs = TokenLogProbs(chunk_size)
        self._share = share_prompts
        self._compared: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()

    def __call__(self, model: nn.Module, batch: Mapping[str, Any], denominator: float) -> Tensor:
        """Return the log-probability of each answer, weighted by its tokens' weights, shape (documents,).

        Args:
            model: the model, wrapped or not.
            batch: with ``answer_lengths``, on the model's device.
            denominator: 0 where nothing is trained.
        """
        lengths: Sequence[int] = batch["answer_lengths"]
        number = sum(lengths) if denominator else 0
        inputs = {name: value for name, value in batch.items() if name not in OWN_KEYS}
        if number and self._shares(model, batch, inputs, number):
            inputs = _with_shared_prompts(batch, inputs)
        found = self._log_probs(model, inputs, number)
        if not number:
            return found.sum().expand(len(lengths))
        return _summed(found * self.weights(batch, number), lengths)

    @staticmethod
    def weights(batch: Mapping[str, Any], number: int) -> Tensor | float:
        """Return the weights of the trained tokens, shape (number,); 1 where the data have none."""
        if "token_weights" not in batch:
            return 1.0
        labels = batch["labels"].reshape(-1)
        positions = torch.nonzero_static(labels != -100, size=number, fill_value=0)[:, 0]
        weights: Tensor = batch["token_weights"].reshape(-1).index_select(0, positions)
        return weights

    def tokens(self, batch: Mapping[str, Any], answers: Tensor) -> Tensor:
        """Return the tokens of each answer, or the sum of their weights, shape (documents,)."""
        lengths: Sequence[int] = batch["answer_lengths"]
        weights = self.weights(batch, sum(lengths))
        if isinstance(weights, Tensor):
            return _summed(weights, lengths).to(answers.dtype)
        made = torch.tensor([max(1, length) for length in lengths], dtype=answers.dtype)
        return made.to(answers.device, non_blocking=True)

    def _shares(self, model: nn.Module, batch: Mapping[str, Any], inputs: Mapping[str, Any], number: int) -> bool:
        """Return whether prompts are computed once, as the batch describes it."""
        if not self._share or SHARED[0] not in batch:
            return False
        bare = innermost(model)
        if are_padded(bare) or not shares_prefixes(bare):
            return False
        if bare not in self._compared:
            self._compared[bare] = self._is_equal(model, batch, inputs, number)
            if not self._compared[bare]:
                logger.warning(
                    "%s: with prompts that are computed once for two answers, log-probabilities are others; prompts are"
                    " computed with each answer",
                    type(bare).__name__,
                )
        return self._compared[bare]

    def _is_equal(self, model: nn.Module, batch: Mapping[str, Any], inputs: Mapping[str, Any], number: int) -> bool:
        """Compare the log-probabilities of a micro-batch with and without shared prompts, without dropout."""
        training = [module for module in model.modules() if module.training]
        try:
            model.eval()
            with torch.no_grad():
                found = self._log_probs(model, _with_shared_prompts(batch, inputs), number)
                expected = self._log_probs(model, inputs, number)
        except ModelError as problem:  # of an attention that computes otherwise here, as where it is compiled
            logger.warning("%s", problem)
            return False
        finally:
            for module in training:
                module.training = True
        exact = not torch.is_autocast_enabled(expected.device.type) and _is_exact(model)
        limit = _LARGEST if exact else 0.05
        return bool((found - expected).abs().max() <= limit * expected.abs().max())


def _is_exact(model: nn.Module) -> bool:
    return all(weight.dtype in (torch.float32, torch.float64) for weight in model.parameters())


def _summed(values: Tensor, lengths: Sequence[int]) -> Tensor:
    return torch.stack([part.sum() for part in torch.split(values, list(lengths))])


def _with_shared_prompts(batch: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs of a model without the prompts of rejected answers."""
    places, offsets, lengths, prefixes = (batch[name] for name in SHARED)
    shape = inputs["input_ids"].shape
    kept = {
        name: value.index_select(1, places) if isinstance(value, Tensor) and value.shape[:2] == shape else value
        for name, value in inputs.items()
    }
    return {
        **kept,
        "document_lengths": lengths,
        "document_prefixes": prefixes,
        **dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), offsets),
        **dict.fromkeys(("max_length_q", "max_length_k"), max(lengths)),
    }
