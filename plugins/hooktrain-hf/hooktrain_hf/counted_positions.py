"""Position ids of models that count positions themselves, past their padding token, as RoBERTa and its kin do.

Batches count the positions of each document from 0. These models count from ``padding_idx + 1``, give each token that
equals their padding token the position ``padding_idx``, and do not count it; given ids they use as they are.
"""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from hooktrain_hf.compat import counts_positions

__all__ = ["count_own_positions", "in_documents"]

in_documents: ContextVar[bool] = ContextVar("in_documents", default=False)
"""Whether the decoder call that is running has position ids that begin at 0 in each document."""


def count_own_positions(decoder: nn.Module) -> bool:
    """Make a model's embeddings replace position ids of documents by their own; return whether there are such."""
    found = [module for module in decoder.modules() if counts_positions(module)]
    for module in found:
        module.register_forward_pre_hook(_Count(module), with_kwargs=True)
    return bool(found)


class _Count:
    """A forward pre-hook for a module that embeds tokens and positions."""

    def __init__(self, module: Any) -> None:
        self.signature, self.padding = inspect.signature(module.forward), int(module.padding_idx)

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        given = self.signature.bind(*args, **kwargs).arguments
        positions, ids = given.get("position_ids"), given.get("input_ids")
        if not in_documents.get() or positions is None:
            return None
        made = positions + self.padding + 1 if ids is None else self._counted(ids, positions)
        return (), {**given, "position_ids": made}

    def _counted(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Return the model's own position ids of documents, shape (sequences, tokens)."""
        real = ids.ne(self.padding).long()
        count = real.cumsum(1)
        begin = (torch.arange(ids.shape[1], device=ids.device) - positions).expand_as(ids)  # of each token's document
        before = count.gather(1, begin) - real.gather(1, begin)
        return (count - before) * real + self.padding
