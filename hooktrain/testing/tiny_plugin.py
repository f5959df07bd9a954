"""The trainer type ``tiny``: a language model of a few hundred weights on random sequences, in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from hooktrain.config import at_least, field
from hooktrain.markers import hookimpl
from hooktrain.types import Batch, Data, DataEstimate, LossSum, TrainerType, World

__all__ = ["TinyDataConfig", "TinyLossConfig", "TinyModel", "TinyModelConfig", "TinyPlugin", "TinyRows"]


@attrs.frozen(kw_only=True)
class TinyDataConfig:
    """Random token sequences of random lengths."""

    rows: int = field(default=13, validator=at_least(0))
    """Sequences to train on."""
    eval_rows: int = field(default=5, validator=at_least(0), affects_training=False)
    """Sequences of the evaluation set ``held_out``; 0 has none."""
    length: int = field(default=9, validator=at_least(2))
    """Tokens of the longest sequence."""
    shuffle: bool = field(default=True)
    """Whether each epoch has an order of its own."""
    seed: int = field(default=0)
    """Seed of the sequences."""
    workers: int = field(default=0, validator=at_least(0), affects_training=False)
    """Processes that collate ahead."""


@attrs.frozen(kw_only=True)
class TinyModelConfig:
    """An embedding and a head."""

    vocab: int = field(default=17, validator=at_least(2))
    """Different tokens."""
    width: int = field(default=8, validator=at_least(1))
    """Hidden size."""
    dropout: float = field(default=0.0)
    """Share of hidden values that are dropped in training."""


@attrs.frozen(kw_only=True)
class TinyLossConfig:
    """Cross-entropy of the next token."""


class TinyRows:
    """Sequences of ``input_ids`` and ``labels``, a third of them ignored; ``read`` lists the indices that were read."""

    def __init__(self, rows: int, length: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.read: list[int] = []
        self.rows = []
        for _ in range(rows):
            size = int(torch.randint(2, length + 1, (), generator=generator))
            ids = torch.randint(0, 17, (size,), generator=generator)
            keep = torch.rand(size, generator=generator) < 0.7
            keep[-1] = True
            self.rows.append((ids, torch.where(keep, ids, -100)))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.read.append(index)
        return self.rows[index]


def _collate(rows: list[tuple[Tensor, Tensor]]) -> Batch:
    """Pad to the longest sequence; shapes (sequences, tokens)."""
    pad = nn.utils.rnn.pad_sequence
    ids, labels = [row[0] for row in rows], [row[1] for row in rows]
    return {
        "input_ids": pad(ids, batch_first=True),
        "labels": pad(labels, batch_first=True, padding_value=-100),
        "attention_mask": pad([torch.ones_like(row) for row in ids], batch_first=True),
    }


class TinyModel(nn.Module):
    """Predicts the next token from the token before it."""

    def __init__(self, config: TinyModelConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.width, config.vocab)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Compute logits of shape (sequences, tokens, vocabulary) from tokens of shape (sequences, tokens)."""
        made: Tensor = self.head(self.dropout(self.embedding(input_ids).tanh()))
        return made


def _loss(model: nn.Module, batch: Batch, denominator: float) -> LossSum:
    logits = model(batch["input_ids"])[:, :-1].float()
    total = nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
    return LossSum(total, denominator)


class TinyPlugin:
    """Registers the trainer type ``tiny``: a language model of a few hundred weights on random sequences."""

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"data": {"tiny": TinyDataConfig}, "model": {"tiny": TinyModelConfig}, "loss": {"tiny": TinyLossConfig}}

    @hookimpl
    def register_trainer_types(self) -> Mapping[str, TrainerType]:
        parts = {
            "data": ("tiny",),
            "model": ("tiny",),
            "loss": ("tiny",),
            "optimizer": ("adamw", "*"),
            "scheduler": ("constant", "*"),
            "strategy": ("torch", "*"),
            "checkpoint": ("full", "*"),
        }
        return {"tiny": TrainerType(parts, "a language model of a few hundred weights, for tests")}

    @hookimpl
    def make_data(self, config: Any, world: World) -> Data | None:
        if not isinstance(config, TinyDataConfig):
            return None
        held_out = {"held_out": TinyRows(config.eval_rows, config.length, config.seed + 1)} if config.eval_rows else {}
        rows = TinyRows(config.rows, config.length, config.seed)
        return Data(
            train=rows,
            evaluation=held_out,
            collate=_collate,
            shuffle=config.shuffle,
            workers=config.workers,
            lengths=torch.tensor([len(ids) for ids, _ in rows.rows]),
        )

    @hookimpl
    def make_model(self, config: Any) -> nn.Module | None:
        return TinyModel(config) if isinstance(config, TinyModelConfig) else None

    @hookimpl
    def make_meta_model(self, config: Any) -> nn.Module | None:
        return TinyModel(config) if isinstance(config, TinyModelConfig) else None

    @hookimpl
    def estimate_data(self, config: Any) -> DataEstimate | None:
        if not isinstance(config, TinyDataConfig):
            return None
        return DataEstimate(sequences=config.rows, longest=config.length, how="random sequences")

    @hookimpl
    def make_loss(self, config: Any) -> Callable[..., LossSum] | None:
        return _loss if isinstance(config, TinyLossConfig) else None
