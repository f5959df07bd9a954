"""The model and the sequences that all variants train."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["LOG_EVERY", "LR", "Blocks", "batch_of", "loss_of"]

LR, LOG_EVERY = 1e-3, 5


class Blocks(nn.Module):
    """An embedding, residual blocks of two layers, and a head: the multiplications of a decoder of its size."""

    def __init__(self, vocab: int, width: int, depth: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            for _ in range(depth)
        )
        self.head = nn.Linear(width, vocab, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return logits of shape (sequences, tokens, vocabulary) for token ids of shape (sequences, tokens)."""
        hidden = self.embedding(input_ids)
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        made: Tensor = self.head(hidden)
        return made


def batch_of(first: int, rows: int, tokens: int, vocab: int) -> Tensor:
    """Return token ids of shape (rows, tokens) from sequence ``first`` on, the same in every variant."""
    return torch.stack([row_of(first + at, tokens, vocab) for at in range(rows)])


def row_of(index: int, tokens: int, vocab: int) -> Tensor:
    """Return one sequence, of shape (tokens,)."""
    return torch.randint(0, vocab, (tokens,), generator=torch.Generator().manual_seed(index))


def loss_of(model: Any, ids: Tensor) -> Tensor:
    """Return the summed cross-entropy of the next token."""
    logits = model(ids)[:, :-1].float()
    return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
