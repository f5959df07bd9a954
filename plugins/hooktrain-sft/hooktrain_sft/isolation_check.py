"""Check at the start of a run that documents in one sequence do not see each other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from hooktrain import LossSum, ModelError
from hooktrain_sft.compat import attention_implementation, special_token_ids, vocabulary_size
from hooktrain_sft.loss.model_inspection import innermost

if TYPE_CHECKING:
    from hooktrain import Trainer
    from hooktrain_sft.data.packed_dataset import TokenSequence

__all__ = ["check_isolation"]

_TOKENS = 16
"""Tokens of each of the two documents."""


def check_isolation(trainer: Trainer) -> None:
    """Compare the losses of a document after two different ones in the same sequence.

    The documents go through the run's own collate function, strategy, model and loss, in evaluation mode and without
    gradients, on every rank. No random numbers are drawn. The loss inspects the model in its first call, so that it
    refuses one before the first step.

    Args:
        trainer: with all parts built; its data are of this plugin.

    Raises:
        ModelError: the losses differ by more than the order of additions explains.
    """
    packs, several = _sharing(trainer)
    one, other, last = _documents(trainer)
    losses = [
        _loss(trainer, _sequences(first, last, packs, several)) for first in ((one, other) if several else (one,))
    ]
    known = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    if len(known) < 2 or known[0] == known[1]:
        return
    # experts may add in another order; attention to another document changes the loss far more
    exact = _computes_in(trainer) in (torch.float32, torch.float64)
    if abs(known[0] - known[1]) <= (1e-5 if exact else 1e-3) * abs(known[0]):
        return
    model = innermost(trainer.model)
    attention = attention_implementation(model) or "its own"
    raise ModelError(
        f"model.attn_implementation: with '{attention}', documents in one sequence of {type(model).__name__}"
        f" see each other (the loss of one is {known[0]:.6g} after one document and {known[1]:.6g} after"
        " another), expected them not to; choose another attn_implementation, or write"
        " data.pack_samples: false and micro_batch_size: 1"
    )


def _sharing(trainer: Trainer) -> tuple[bool, bool]:
    """Return whether the run's sequences hold several documents, and whether its micro-batches do."""
    packs = bool(trainer.recipe.data.pack_samples)
    most = max(trainer.recipe.micro_batch_size, trainer.recipe.eval_micro_batch_size or 0)
    return packs, packs or most > 1


def _sequences(first: TokenSequence, last: TokenSequence, packs: bool, several: bool) -> list[TokenSequence]:
    if packs:
        return [{name: np.concatenate([first[name], last[name]]) for name in first}]
    return [first, last] if several else [last]


def _loss(trainer: Trainer, sequences: list[TokenSequence]) -> float | None:
    """Return the loss of sequences; None where the batch keeps them apart, or the loss is no ``LossSum``."""
    host_batch = trainer.data.collate(sequences)
    denominator = int((host_batch["labels"][:, 1:] != -100).sum())
    batch, device = trainer.on_device(host_batch), trainer.device
    modes = {module: module.training for module in trainer.model.modules()}
    try:
        trainer.model.eval()
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            loss = trainer.strategy.compute(lambda: trainer.loss(trainer.model, batch, denominator), True)
    finally:
        for module, training in modes.items():
            module.training = training
    readable = isinstance(loss, LossSum) and len(host_batch["labels"]) == 1
    return float(loss.total) if readable else None


def _documents(trainer: Trainer) -> list[TokenSequence]:
    """Make two documents without labels and one with, of tokens that are not special."""
    sizes = [vocabulary_size(innermost(trainer.model)), vocabulary_size(trainer.tokenizer)]
    special = special_token_ids(trainer.tokenizer)
    usable = [token for token in range(min(filter(None, sizes), default=2)) if token not in special] or [0]
    ids = np.random.default_rng(0).choice(np.array(usable, np.int64), (3, _TOKENS))
    labels = np.full((3, _TOKENS), -100, np.int64)
    labels[2, 1:] = ids[2, 1:]
    return [{"input_ids": ids[n], "labels": labels[n], "position_ids": np.arange(_TOKENS)} for n in range(3)]


def _computes_in(trainer: Trainer) -> torch.dtype:
    """Return the type of the run's matrix products."""
    device = trainer.device.type

    def dtype() -> torch.dtype:
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return next((p.dtype for p in trainer.model.parameters() if p.is_floating_point()), torch.float32)

    return trainer.strategy.compute(dtype, True)
