"""torch.compile for each block of a decoder, in place: the names of its weights stay as they are."""

from __future__ import annotations

import types
from typing import Any

import torch

from hooktrain import ModelError
from hooktrain_hf.block_settings import Compilation
from hooktrain_hf.compat import checkpointed_blocks, compile_counters, is_cache

__all__ = ["compile_blocks", "counted_since_compiling"]


def compile_blocks(model: Any, compilation: Compilation) -> None:
    """Have the blocks of a transformers model compiled when they are first called.

    What is compiled is a block's ``forward`` and not its call: the hooks of FSDP2 and others stay outside of graphs.

    Args:
        model: the complete model.
        compilation: how.

    Raises:
        ModelError: the model has no blocks that transformers knows.
    """
    blocks: list[Any] = [block for block, _ in checkpointed_blocks(model)]
    if not blocks:
        raise ModelError(
            f"model.compile: given for a {type(model).__name__}, which has no blocks that could be compiled one by one;"
            " remove the key"
        )
    # a function of this model's own: torch counts graphs by the code, and stops compiling one with too many
    own = types.FunctionType(_compiled.__code__.replace(), globals(), _compiled.__name__)
    forward = _Forward(
        torch.compile(own, mode=compilation.mode, dynamic=compilation.dynamic, backend=compilation.backend)
    )
    for block in blocks:
        block.forward = types.MethodType(forward, block)


def counted_since_compiling(model: Any) -> tuple[int, list[str]]:
    """Return what has happened in this process since :func:`compile_blocks` was called for a model.

    Returns:
        How many graphs were made, and why graphs were broken off.
    """
    methods = (vars(block).get("forward") for block, _ in checkpointed_blocks(model))
    before: Any = next(each.__func__ for each in methods if isinstance(each, types.MethodType))
    graphs, breaks = compile_counters()
    return graphs - before.graphs, [why for why, count in breaks.items() if count > before.breaks.get(why, 0)]


def _compiled(block: Any, *args: Any, **kwargs: Any) -> Any:
    # of the class as it is now: FSDP2 gives a block another one
    return type(block).forward(block, *args, **kwargs)


class _Forward:
    """The ``forward`` of blocks, compiled while they are trained.

    Evaluation, checks and generation call them in other modes, each of which would take a graph of the few that torch
    makes of a function before it stops.
    """

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self.graphs, self.breaks = compile_counters()

    def __call__(self, block: Any, *args: Any, **kwargs: Any) -> Any:
        if block.training and torch.is_grad_enabled() and not any(map(is_cache, (*args, *kwargs.values()))):
            return self.compiled(block, *args, **kwargs)
        return _compiled(block, *args, **kwargs)

    def __deepcopy__(self, memo: Any) -> _Forward:
        return self
