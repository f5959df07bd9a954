"""The reference of a loss: a further model of the run, or its own without its adapter."""

from __future__ import annotations

from typing import Any

from hooktrain_hf import FrozenModelConfig, make_frozen_model
from torch.nn import Module

from hooktrain import ExtraModel, ModelError, Recipe

__all__ = ["NAME", "make_reference"]

NAME = "reference"
"""Name of the reference among ``trainer.models``."""


def make_reference(config: FrozenModelConfig, model: Module, recipe: Recipe, **arguments: Any) -> ExtraModel | None:
    """Describe the reference for ``make_models``; None where it is the run's own model without its adapter.

    Args:
        config: the recipe's ``models.reference``.
        model: the run's model.
        recipe: the recipe.
        arguments: ``hooks``, ``tokenizer`` and ``world`` of ``make_models``.

    Raises:
        ModelError: the model has no adapter to disable.
    """

    def check(made: Any) -> None:
        _require_same_vocabulary(made, model, str(config.name_or_path))

    return make_frozen_model(NAME, config, model, recipe, check=check, **arguments)


def _require_same_vocabulary(reference: Any, model: Any, name: str) -> None:
    """Raise a ``ModelError`` for a reference of another vocabulary, whose size models of a family round differently."""
    theirs, ours = (each.get_input_embeddings().num_embeddings for each in (reference, model))
    if abs(theirs - ours) > 0.01 * ours:
        raise ModelError(
            f"models.reference.name_or_path: given '{name}', which has a vocabulary of {theirs:,} tokens,"
            f" expected that of the run's model, {ours:,}; give a model with the same tokenizer"
        )
