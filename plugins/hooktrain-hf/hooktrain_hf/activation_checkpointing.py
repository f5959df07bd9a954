"""Blocks that recompute their activations: all or each second one, keeping the results of some operators or none."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from hooktrain import ModelError
from hooktrain_hf.activation_offload import HostActivations
from hooktrain_hf.block_settings import kept_operators, shown
from hooktrain_hf.compat import checkpointed_blocks, enable_activation_checkpointing, operators_named, recompute_block

__all__ = ["enable_checkpointing", "host_activations"]

_KEY = "model.activation_checkpointing"


def enable_checkpointing(model: Any, setting: Any, offload: bool = False) -> None:
    """Have the blocks of a transformers model recompute activations in the backward pass.

    Args:
        model: the complete model.
        setting: a checked value of ``activation_checkpointing`` that is not false.
        offload: whether what the blocks keep is moved to the host.

    Raises:
        ModelError: the model has no activation checkpointing, or no blocks of which some could be chosen.
    """
    given = f"{_KEY}: given {shown(setting)}, but {type(model).__name__}"
    try:
        enable_activation_checkpointing(model)
    except ValueError as problem:
        raise ModelError(f"{given} cannot recompute activations; remove the key") from problem
    every = setting.get("every", 1) if isinstance(setting, Mapping) else 1
    kept = kept_operators(setting)
    if every == 1 and not kept and not offload:
        return
    blocks = [block for block, function in checkpointed_blocks(model) if function is not None]
    if not blocks:
        raise ModelError(f"{given} recomputes its blocks in code of its own; write true")
    function: Any = _function(kept)
    if offload:
        function = _Offloaded(function)
    for index, block in enumerate(blocks):
        recompute_block(block, function if index % every == 0 else None)


def host_activations(model: Any) -> HostActivations | None:
    """Return what moves the activations of a model to the host; None where they stay."""
    functions = (function for _, function in checkpointed_blocks(model))
    return next((function.host for function in functions if isinstance(function, _Offloaded)), None)


def _function(kept: Collection[str]) -> Callable[..., Any]:
    """Return a function that calls another one and keeps its inputs and the results of some operators."""
    if not kept:
        return functools.partial(checkpoint, use_reentrant=False)
    operators = [overload for name in kept for overload in operators_named(name)]
    contexts = functools.partial(create_selective_checkpoint_contexts, operators)
    return functools.partial(checkpoint, use_reentrant=False, context_fn=contexts)


class _Offloaded:
    """Calls a function of checkpointing, and moves the inputs that it keeps to the host."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.host = function, HostActivations()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.host.hooks():
            return self.function(*args, **kwargs)
