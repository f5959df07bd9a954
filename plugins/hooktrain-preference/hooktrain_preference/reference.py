"""The reference of a loss: a further model of the run, or its own without its adapter."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import attrs
import torch
from hooktrain_hf import HFModelConfig, HFTokenizerConfig
from torch.nn import Module, Parameter

from hooktrain import ExtraModel, HooktrainError, ModelError, Recipe
from hooktrain_preference.config import ReferenceConfig

if TYPE_CHECKING:
    from hooktrain import Trainer

__all__ = ["NAME", "adapter_of", "as_reference", "describe", "make_reference", "release", "weights_digest"]

NAME = "reference"
"""Name of the reference among ``trainer.models``."""


@runtime_checkable
class _WithAdapter(Protocol):
    """A model of PEFT's."""

    def disable_adapter(self) -> Any:
        """Return a context in which the model computes what its base does."""


def adapter_of(model: Module) -> _WithAdapter | None:
    """Return the module inside a model's wrappers that can disable its adapter; None where there is no adapter."""
    return next((module for module in model.modules() if isinstance(module, _WithAdapter)), None)


def make_reference(config: ReferenceConfig, model: Module, recipe: Recipe, **arguments: Any) -> ExtraModel | None:
    """Describe the reference for ``make_models``; None where it is the run's own model without its adapter.

    Args:
        config: the recipe's ``models.reference``.
        model: the run's model.
        recipe: the recipe.
        arguments: ``hooks``, ``tokenizer`` and ``world`` of ``make_models``.

    Raises:
        ModelError: the model has no adapter to disable, or is of another kind than the reference.
    """
    has_adapter = adapter_of(model) is not None
    if config.type == "adapter_off" and not has_adapter:
        raise ModelError(
            f"models.reference: given type adapter_off, but {type(model).__name__} has no adapter; add one with the"
            " section peft, or choose type copy"
        )
    if config.type == "adapter_off" or (config.type == "auto" and has_adapter):
        return None
    if config.type == "huggingface" and not isinstance(recipe.model, HFModelConfig):
        raise ModelError(
            f"models.reference: given type huggingface, but the run's model is a {type(model).__name__} passed from"
            " Python; choose type copy, or give model.name_or_path"
        )
    return _built(config, model, recipe, **arguments)


def _built(
    config: ReferenceConfig, model: Module, recipe: Recipe, hooks: Any, tokenizer: Any, world: Any
) -> ExtraModel:
    described = recipe.model
    if config.name_or_path is not None:
        described = attrs.evolve(described, name_or_path=config.name_or_path, revision=None, gguf_file=None)
    changed = attrs.evolve(recipe, model=described)

    def build() -> Module:
        if not isinstance(described, HFModelConfig):
            return copy.deepcopy(model)  # passed from Python, where building would return the same module
        made: Module = hooks.make_model(config=described, tokenizer=tokenizer, world=world, recipe=changed)
        if config.name_or_path is not None:
            _require_same_vocabulary(made, model, config.name_or_path)
            own = recipe.tokenizer
            if isinstance(own, HFTokenizerConfig) and tokenizer is not None:
                own = attrs.evolve(own, name_or_path=config.name_or_path, revision=None, gguf_file=None)
                try:
                    theirs = hooks.make_tokenizer(config=own, world=world, recipe=changed)
                except HooktrainError:  # a folder of weights alone
                    return made
                _require_same_tokens(theirs.get_vocab(), tokenizer.get_vocab(), config.name_or_path)
        return made

    def build_meta() -> Module:
        if not isinstance(described, HFModelConfig):
            return copy.deepcopy(model)
        made: Module = hooks.make_meta_model(config=described, world=world, recipe=changed)
        return made

    return ExtraModel(build, dtype=config.dtype, offload=config.offload, build_meta=build_meta)


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


@contextmanager
def as_reference(model: Module) -> Iterator[None]:
    """Make a model compute as it did without its adapter, in evaluation mode, for the time of the context."""
    training = [module for module in model.modules() if module.training]
    adapter = adapter_of(model)
    assert adapter is not None, "make_reference has refused a model without one"
    try:
        model.eval()
        with adapter.disable_adapter():
            yield
    finally:
        for module in training:
            module.training = True


def describe(config: ReferenceConfig, model: Module | None) -> str:
    """Return what the reference is, for a message."""
    if model is None:
        return "reference: the model without its adapter"
    if config.name_or_path is not None:
        return f"reference: {config.name_or_path}"
    return "reference: a copy of the model as it was before the run"


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
