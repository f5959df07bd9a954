"""Trains only the weights that the recipe names."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from fnmatch import fnmatchcase

import attrs
from hooktrain import ModelError, Recipe, did_you_mean, field, hookimpl
from torch.nn import Module


@attrs.frozen(kw_only=True)
class Settings:
    """What a recipe may say under ``freeze``."""

    all_but: tuple[str, ...] = field(default=())
    """Patterns of the weights to train, such as ``lm_head.*``."""


@hookimpl
def register_configs() -> Mapping[str, Mapping[str, type]]:
    return {"settings": {"freeze": Settings}}


@hookimpl(wrapper=True)
def make_model(recipe: Recipe) -> Generator[None, Module, Module]:
    model = yield  # here another plugin builds it
    patterns = recipe.settings["freeze"].all_but
    if patterns:
        _freeze(model, patterns)
    return model


def _freeze(model: Module, patterns: tuple[str, ...]) -> None:
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ModelError(
                f"freeze.all_but: no weight is named '{pattern}'"
                f"{did_you_mean(pattern, names)}; the model has"
                f" {', '.join(names[:5])}, ..."
            )
    for name, weight in model.named_parameters():
        trained = any(fnmatchcase(name, each) for each in patterns)
        weight.requires_grad_(trained)
