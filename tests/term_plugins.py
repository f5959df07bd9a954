"""Plugins with terms of the loss, and the plain float64 loop that gradients with them must equal."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hooktrain import LossTerm, ModelOutputs, hookimpl

__all__ = ["Evens", "Gradients", "Scale", "evens", "expected_gradients", "scale"]

EVENS, SCALE = 0.3, 0.05
"""Coefficients."""


def evens(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, float]:
    """Return a term of the sequences that begin with an even token, and how many there are."""
    ids = batch["input_ids"]
    chosen = ids[:, 0] % 2 == 0
    mask = batch["attention_mask"][..., None]  # padding depends on how sequences are divided into micro-batches
    embedded = ((model.embedding(ids) * mask).sum(1) / mask.sum(1)).square().sum(-1)
    return torch.where(chosen, embedded, 0.0).sum(), float(chosen.sum())


def scale(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Return a property of a complete micro-batch, as router balance is one."""
    return model.head(model.embedding(batch["input_ids"])).square().mean()


class Evens:
    """A term with a denominator of its own, which many micro-batches do not have."""

    @hookimpl
    def count_loss_terms(self, batch: Mapping[str, Any]) -> dict[str, float]:
        return {"evens": float((batch["input_ids"][:, 0] % 2 == 0).sum())}

    @hookimpl
    def collect_loss_terms(self, trainer: Any, batch: Mapping[str, Any]) -> dict[str, LossTerm]:
        return {"evens": LossTerm(evens(trainer.model, batch)[0], EVENS)}


class Scale:
    """A term that is divided as the loss is."""

    @hookimpl
    def collect_loss_terms(self, trainer: Any, outputs: ModelOutputs, batch: Mapping[str, Any]) -> dict[str, LossTerm]:
        return {"scale": LossTerm(scale(trainer.model, batch) * outputs["denominator"], SCALE)}


class Gradients:
    """Keeps the weights, micro-batches and gradients of each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    @hookimpl
    def on_step_start(self, trainer: Any, batches: Sequence[Mapping[str, Any]]) -> None:
        model = {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
        self.steps.append({"model": model, "batches": [dict(each) for each in batches]})

    @hookimpl
    def on_optimizer_step_start(self, trainer: Any) -> None:
        found = {name: value.grad.clone() for name, value in trainer.model.named_parameters()}
        self.steps[-1]["gradients"] = found


def expected_gradients(
    model: nn.Module, weights: Mapping[str, Tensor], batches: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return gradients and metrics of one step over all ranks, in float64 and in plain words.

    Args:
        model: of the tiny type.
        weights: its weights at the beginning of the step.
        batches: the micro-batches of all ranks.
    """
    net = copy.deepcopy(model).double()
    net.load_state_dict(weights)
    counts = [int((batch["labels"][:, 1:] != -100).sum()) for batch in batches]
    tokens, sequences = sum(counts), sum(evens(net, batch)[1] for batch in batches)
    means = {"loss": torch.zeros((), dtype=torch.float64), "evens": 0.0, "scale": 0.0}
    for batch, count in zip(batches, counts, strict=True):
        logits = net(batch["input_ids"])[:, :-1].flatten(0, 1)
        total = nn.functional.cross_entropy(logits, batch["labels"][:, 1:].flatten(), reduction="sum")
        means["loss"] = means["loss"] + (total / tokens if count else 0.0)
        means["scale"] = means["scale"] + scale(net, batch) * count / tokens
        if sequences:
            means["evens"] = means["evens"] + evens(net, batch)[0] / sequences
    objective = means["loss"] + EVENS * means["evens"] + SCALE * means["scale"]
    objective.backward()
    means["loss"] = objective
    gradients = {name: value.grad for name, value in net.named_parameters()}
    return gradients, {name: float(torch.as_tensor(value).detach()) for name, value in means.items()}
