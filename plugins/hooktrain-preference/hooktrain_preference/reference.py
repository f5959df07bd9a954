"""The reference of a loss: a further model of the run, or its own without its adapter."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
import torch
from hooktrain_hf import FrozenModelConfig, HFTokenizerConfig, make_frozen_model
from torch.nn import Module, Parameter

from hooktrain import ExtraModel, HooktrainError, ModelError, Recipe

if TYPE_CHECKING:
    from hooktrain import Trainer

__all__ = ["NAME", "make_reference", "release", "weights_digest"]

NAME = "reference"
"""Name of the reference among ``trainer.models``."""


def make_reference(
    config: FrozenModelConfig, model: Module, recipe: Recipe, *, hooks: Any, tokenizer: Any, world: Any
) -> ExtraModel | None:
    """Describe the reference for ``make_models``; None where it is the run's own model without its adapter.

    Args:
        config: the recipe's ``models.reference``.
        model: the run's model.
        recipe: the recipe.
        hooks: those of ``make_models``, as are ``tokenizer`` and ``world``.
        tokenizer: None in a plan.
        world: this process.

    Raises:
        ModelError: the model has no adapter to disable.
    """

    def check(made: Any) -> None:
        name, own = str(config.name_or_path), recipe.tokenizer
        _require_same_vocabulary(made, model, name)
        if isinstance(own, HFTokenizerConfig) and tokenizer is not None:
            own = attrs.evolve(own, name_or_path=name, revision=None, gguf_file=None)
            try:
                theirs = hooks.make_tokenizer(config=own, world=world, recipe=recipe)
            except HooktrainError:  # a folder of weights alone
                return
            _require_same_tokens(theirs.get_vocab(), tokenizer.get_vocab(), name)

    given = {"hooks": hooks, "tokenizer": tokenizer, "world": world}
    return make_frozen_model(NAME, config, model, recipe, **given, check=check)


def _require_same_vocabulary(reference: Any, model: Any, name: str) -> None:
    """Raise a ``ModelError`` for a reference of another vocabulary, whose size models of a family round differently."""
    theirs, ours = (each.get_input_embeddings().num_embeddings for each in (reference, model))
    if abs(theirs - ours) > 0.01 * ours:
        raise ModelError(
            f"models.reference.name_or_path: given '{name}', which has a vocabulary of {theirs:,} tokens,"
            f" expected that of the run's model, {ours:,}; give a model with the same tokenizer"
        )


def _require_same_tokens(theirs: Mapping[str, int], ours: Mapping[str, int], name: str) -> None:
    """Raise a ``ModelError`` for a reference whose tokenizer has other ids for the same tokens, or lacks many."""
    wrong = next((token for token, number in ours.items() if theirs.get(token, number) != number), None)
    lacking = ours.keys() - theirs.keys()
    if wrong is not None or len(lacking) > 0.01 * len(ours):
        what = f"lacks {len(lacking):,} of its tokens"
        if wrong is not None:
            what = f"has {wrong!r} as token {theirs[wrong]:,}, where it is token {ours[wrong]:,}"
        raise ModelError(
            f"models.reference.name_or_path: given '{name}', whose tokenizer {what}, expected that of the run's model;"
            " give a model with the same tokenizer"
        )


def weights_digest(trainer: Trainer) -> str:
    """Return a text that is equal for references of equal weights, wherever they come from. Collective.

    Args:
        trainer: its reference is among ``trainer.models``, or is its own model without the adapter.
    """
    reference = trainer.models.get(NAME)
    model = trainer.model if reference is None else reference
    frozen = {name for name, weight in trainer.strategy.unwrap(model).named_parameters() if not weight.requires_grad}
    made = hashlib.blake2b(digest_size=16)
    for name, value in sorted(trainer.strategy.full_state_dict(model).items()):
        if name in frozen:
            made.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            made.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return str(trainer.strategy.gather_objects(made.hexdigest())[0])


def release(model: Module) -> bool:
    """Free the memory of a model that is not called any more; return whether that was possible.

    A strategy that shards or offloads the weights keeps them.
    """
    if any(type(weight) is not Parameter or not weight.numel() for weight in model.parameters()):
        return False
    model.to("meta")
    return True
