"""Checked at the start of a run: documents that share a row do not see each other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hooktrain import LossSum, ModelError
from hooktrain_sft.loss.model_inspection import innermost

if TYPE_CHECKING:
    from hooktrain import Trainer
    from hooktrain_sft.data.packed_dataset import Row

__all__ = ["check_isolation"]

_TOKENS = 16
"""Tokens of each of the two documents."""


def check_isolation(trainer: Trainer) -> None:
    """Compute the loss of a second document twice, behind two different first ones.

    What the run does is what is asked: its rows go through the run's collate function, strategy, model and loss, in
    evaluation mode and without gradients, on every rank alike. No random numbers are drawn. This is also when the loss
    first looks at the model, so that what it refuses it refuses before the first step.

    Args:
        trainer: with all parts built; its data are of this plugin.

    Raises:
        ModelError: the losses differ, by more than the order of additions can explain.
    """
    packs, several = _sharing(trainer)
    one, other, last = _documents(trainer)
    behind = [_loss(trainer, _rows(first, last, packs, several)) for first in ((one, other) if several else (one,))]
    known = [loss for loss in behind if loss is not None and math.isfinite(loss)]
    if len(known) < 2 or known[0] == known[1]:
        return
    # routing to experts and the like may add in another order; attention to another document changes far more
    exact = _computes_in(trainer) in (torch.float32, torch.float64)
    if abs(known[0] - known[1]) <= (1e-5 if exact else 1e-3) * abs(known[0]):
        return
    model = innermost(trainer.model)
    attention = getattr(getattr(model, "config", None), "_attn_implementation", "of its own")
    raise ModelError(
        f"model.attn_implementation: with '{attention}', documents that share a row of"
        f" {type(model).__name__} see each other (the loss of one is {known[0]:.6g} behind one document and"
        f" {known[1]:.6g} behind another), expected each to be on its own; choose another attn_implementation, or write"
        " data.pack_samples: false and micro_batch_size: 1"
    )


def _sharing(trainer: Trainer) -> tuple[bool, bool]:
    """Whether the run's rows hold several documents from the start, and whether its micro-batches do."""
    packs = bool(getattr(trainer.recipe.data, "pack_samples", False))
    most = max(trainer.recipe.micro_batch_size, trainer.recipe.eval_micro_batch_size or 0)
    return packs, packs or most > 1


def _rows(first: Row, last: Row, packs: bool, several: bool) -> list[Row]:
    if packs:
        return [{name: np.concatenate([first[name], last[name]]) for name in first}]
    return [first, last] if several else [last]


def _loss(trainer: Trainer, rows: list[Row]) -> float | None:
    """The loss of rows; None where each came to have a row of its own, or the loss is none that can be read."""
    host_batch = trainer.data.collate(rows)
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


def _documents(trainer: Trainer) -> list[Row]:
    """Two documents without labels and one with, of tokens that are not special."""
    config: Any = getattr(innermost(trainer.model), "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    sizes = [getattr(text, "vocab_size", None), getattr(trainer.tokenizer, "vocab_size", None)]
    special = set(getattr(trainer.tokenizer, "all_special_ids", ()))
    usable = [token for token in range(min(filter(None, sizes), default=2)) if token not in special] or [0]
    ids = np.random.default_rng(0).choice(np.array(usable, np.int64), (3, _TOKENS))
    labels = np.full((3, _TOKENS), -100, np.int64)
    labels[2, 1:] = ids[2, 1:]
    return [{"input_ids": ids[n], "labels": labels[n], "position_ids": np.arange(_TOKENS)} for n in range(3)]


def _computes_in(trainer: Trainer) -> torch.dtype:
    """The precision of matrix products in the run."""
    device = trainer.device.type

    def asked() -> torch.dtype:
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return next((p.dtype for p in trainer.model.parameters() if p.is_floating_point()), torch.float32)

    return trainer.strategy.compute(asked, True)
