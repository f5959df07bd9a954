"""A contrastive term of documents, and a preference loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
from hooktrain import CoefficientSchedule, LossTerm, PluginInfo, above, coefficient_at, field, hookimpl

if TYPE_CHECKING:
    from hooktrain import Batch, LossSum, ModelOutputs, Trainer
    from hooktrain_preference import Pairs
    from torch import Tensor


@attrs.frozen(kw_only=True)
class ContrastSettings:
    """What a recipe may say under ``contrast``."""

    coefficient: float | CoefficientSchedule = field(default=0.0)
    """How much the term counts; 0 is without it."""
    temperature: float = field(default=0.1, validator=above(0))
    """Divisor of the similarities."""


@attrs.frozen(kw_only=True)
class ExponentialConfig:
    """``exp(-beta * margin)`` of the log-probabilities of two answers."""

    provides_outputs: ClassVar[tuple[str, ...]] = ("last_hidden_state",)  # as the PairLoss does

    beta: float = field(default=0.1, validator=above(0))
    """Factor of the margin."""


hooktrain_plugin = PluginInfo(
    changes_gradients=True,
    needs_outputs="last_hidden_state",
    loss_terms="contrast",
    active_when=lambda recipe: recipe.settings["contrast"].coefficient != 0,
)


@hookimpl
def register_configs() -> Mapping[str, Mapping[str, type]]:
    return {"settings": {"contrast": ContrastSettings}, "loss": {"exponential": ExponentialConfig}}


@hookimpl
def unused_hooks(recipe: Any) -> list[str]:
    return [] if recipe.settings["contrast"].coefficient else ["count_loss_terms", "collect_loss_terms"]


# ------------------------------------------------------------------------------------------------------ the term


def _documents(batch: Batch) -> list[int]:
    """Lengths of the documents that can be halved; none where there is nothing to compare one with."""
    lengths = [length for length in batch["document_lengths"] if length > 1]
    trained = bool((batch["labels"] != -100).any())
    return lengths if len(lengths) > 1 and trained else []


@hookimpl
def count_loss_terms(batch: Batch) -> Mapping[str, float]:
    return {"contrast": float(len(_documents(batch)))}


@hookimpl
def collect_loss_terms(trainer: Trainer, outputs: ModelOutputs, batch: Batch) -> Mapping[str, LossTerm]:
    settings = trainer.recipe.settings["contrast"]
    hidden = outputs["last_hidden_state"].flatten(0, 1)  # (tokens, hidden)
    total = info_nce(hidden, batch["document_lengths"], settings.temperature)
    return {"contrast": LossTerm(total, coefficient_at(settings.coefficient, trainer))}


def info_nce(hidden: Tensor, lengths: tuple[int, ...], temperature: float) -> Tensor:
    """Sum over documents: which second half belongs to a first one, among those of the micro-batch."""
    import torch
    from torch.nn import functional

    documents = [each for each in torch.split(hidden, list(lengths)) if len(each) > 1]
    if len(documents) < 2:
        return hidden.sum() * 0.0
    halves = [each.tensor_split([len(each) // 2]) for each in documents]
    first, second = (
        functional.normalize(torch.stack([pair[side].float().mean(0) for pair in halves]), dim=1) for side in (0, 1)
    )
    similar = first @ second.T / temperature  # (documents, documents)
    goal = torch.arange(len(documents), device=hidden.device)
    return functional.cross_entropy(similar, goal, reduction="sum")


# ------------------------------------------------------------------------------------------------------ the loss


@hookimpl
def make_loss(config: Any) -> Callable[..., LossSum] | None:
    if not isinstance(config, ExponentialConfig):
        return None
    from hooktrain_preference import PairLoss

    return PairLoss(partial(exponential, beta=config.beta))


def exponential(pairs: Pairs, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of the pairs, and the rewards of their answers, each of shape (pairs,)."""
    chosen, rejected = beta * pairs.chosen, beta * pairs.rejected
    return (rejected - chosen).exp(), chosen, rejected
