"""Keeps a model close to what it was: adds the divergence from it."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import attrs
import torch
from hooktrain import (
    Batch,
    ExtraModel,
    LossSum,
    PluginInfo,
    Recipe,
    Trainer,
    World,
    at_least,
    field,
    hookimpl,
)
from torch import Tensor
from torch.nn import Module


@attrs.frozen(kw_only=True)
class Settings:
    """What a recipe may say under ``anchor``."""

    beta: float = field(default=0.0, validator=at_least(0))
    """How much the divergence counts; 0 trains without it."""
    offload: bool = field(default=False)
    """Whether the model as it was is kept in the processor's memory."""


def _is_used(recipe: Recipe) -> bool:
    settings: Settings = recipe.settings["anchor"]
    return settings.beta > 0


hooktrain_plugin = PluginInfo(changes_gradients=True, active_when=_is_used)


@hookimpl
def register_configs() -> Mapping[str, Mapping[str, type]]:
    return {"settings": {"anchor": Settings}}


@hookimpl
def make_models(
    recipe: Recipe, tokenizer: Any, world: World, hooks: Any
) -> Mapping[str, ExtraModel]:
    given = {"config": recipe.model, "world": world, "recipe": recipe}

    def build() -> Module:
        model: Module = hooks.make_model(tokenizer=tokenizer, **given)
        return model

    def build_meta() -> Module:
        model: Module = hooks.make_meta_model(**given)
        return model

    offload = recipe.settings["anchor"].offload
    anchor = ExtraModel(build, offload=offload, build_meta=build_meta)
    return {"anchor": anchor}


@hookimpl(wrapper=True)
def compute_loss(
    trainer: Trainer, model: Module, batch: Batch
) -> Generator[None, LossSum, LossSum]:
    loss = yield
    ids, labels = batch["input_ids"], batch["labels"]
    with torch.no_grad():
        goal = _log_p(trainer.models["anchor"](ids), labels)
    found = _log_p(model(ids), labels)
    divergence = (found.exp() * (found - goal)).sum()
    beta = trainer.recipe.settings["anchor"].beta
    return loss._replace(
        total=loss.total + beta * divergence,
        sums={**loss.sums, "divergence": divergence.detach()},
    )


def _log_p(output: Any, labels: Tensor) -> Tensor:
    """Log-probabilities where a token is trained, (tokens, vocabulary)."""
    logits: Tensor = getattr(output, "logits", output)
    return logits[:, :-1][labels[:, 1:] != -100].float().log_softmax(-1)
