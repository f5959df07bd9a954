"""Preference pairs: a data kind, a loss, and the trainer type of both."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from hooktrain import (
    Batch,
    Data,
    DataError,
    LossSum,
    TrainerType,
    document_keys,
    field,
    hookimpl,
)
from torch.nn import Module
from torch.nn.functional import cross_entropy, logsigmoid

Row = Mapping[str, list[int]]


@attrs.frozen(kw_only=True)
class PairsConfig:
    """Prompts, each with an answer that is preferred to another one."""

    path: Path = field()
    """JSON Lines with ``prompt``, ``chosen`` and ``rejected``."""


@attrs.frozen(kw_only=True)
class ContrastConfig:
    """How much likelier the preferred answer is."""

    beta: float = field(default=0.1)
    """Factor of the difference."""


@hookimpl
def register_configs() -> Mapping[str, Mapping[str, type]]:
    pairs, contrast = {"pairs": PairsConfig}, {"contrast": ContrastConfig}
    return {"data": pairs, "loss": contrast}


@hookimpl
def register_trainer_types() -> Mapping[str, TrainerType]:
    parts = {
        "tokenizer": ("huggingface",),
        "data": ("pairs",),
        "model": ("huggingface", "*"),
        "loss": ("contrast",),
        "optimizer": ("adamw", "*"),
        "scheduler": ("constant", "*"),
        "strategy": ("torch", "*"),
        "checkpoint": ("full", "huggingface", "*"),
    }
    return {"pairs": TrainerType(parts, "preference pairs")}


@hookimpl
def make_data(config: Any, tokenizer: Any) -> Data | None:
    if not isinstance(config, PairsConfig):
        return None

    def ids(text: str) -> list[int]:
        found = tokenizer(text, add_special_tokens=False)["input_ids"]
        if not found:
            raise DataError(f"{config.path}: remove rows with empty texts")
        return list(found)

    with config.path.open(encoding="utf-8") as lines:
        texts = [json.loads(line) for line in lines]
    rows = [{name: ids(each[name]) for name in each} for each in texts]
    return Data(train=rows, collate=collate)


def collate(rows: Iterable[Row]) -> Batch:
    """All answers in one sequence, each after its prompt."""
    batch: dict[str, list[int]]
    batch = {"input_ids": [], "labels": [], "position_ids": []}
    lengths = []
    for row in rows:
        for answer in (row["chosen"], row["rejected"]):
            prompt = row["prompt"]
            lengths.append(len(prompt) + len(answer))
            batch["input_ids"] += prompt + answer
            batch["labels"] += [-100] * len(prompt) + answer
            batch["position_ids"] += range(lengths[-1])
    tensors = {name: torch.tensor([each]) for name, each in batch.items()}
    return {
        **tensors,
        **document_keys(lengths),
        "tokens": sum(lengths),
        "denominator": len(lengths) / 2,
        "counts": "pairs",
    }


@hookimpl
def make_loss(config: Any) -> Callable[..., LossSum] | None:
    if not isinstance(config, ContrastConfig):
        return None

    def loss(model: Module, batch: Batch, denominator: float) -> LossSum:
        given = {name: batch[name] for name in batch if name != "labels"}
        logits = model(**given).logits[0, :-1].float()
        # each document begins with a prompt, so none predicts the next one
        labels = batch["labels"][0, 1:]
        log_p = -cross_entropy(logits, labels, reduction="none")
        # the first token of all has no prediction
        lengths = list(batch["document_lengths"])
        lengths[0] -= 1
        answers = [each.sum() for each in torch.split(log_p, lengths)]
        margins = torch.stack(answers[::2]) - torch.stack(answers[1::2])
        total = -logsigmoid(config.beta * margins).sum()
        sums = {"accuracy": (margins > 0).sum().detach()}
        return LossSum(total, denominator, sums, counts="pairs")

    return loss
