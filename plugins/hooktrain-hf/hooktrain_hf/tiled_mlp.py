"""The recipe's ``model.tiled_mlp``: MLPs that compute some tokens at a time, and recompute them backward.

An MLP widens each token to several times the size of the model. For a long sequence that is most of what exists at
once, even where blocks recompute their activations. As tokens do not depend on each other there, they are computed in
tiles, of which only the inputs are kept.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hooktrain import ModelError
from hooktrain_hf.compat import checkpointed_blocks

__all__ = ["require_mlps", "tile_mlps", "tiles_of"]

_MLP = re.compile(r"(MLP|Mlp|FeedForward|FFN|DenseActDense|DenseGatedActDense)$")
"""Names of classes whose modules compute each token alone."""
_ROUTED = re.compile(r"(Moe|MoE|MoeBlock|MoEBlock|MoeLayer|MoELayer|Experts?|Router)$")
"""Names of classes that distribute tokens over experts."""


def require_mlps(make: Callable[[Any], Any], hf_config: Any) -> None:
    """Raise ModelError where a model of this config has no MLPs to tile; no weights are read.

    Args:
        make: makes a model of a transformers config.
        hf_config: of the model; it is not changed.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        _tileable(make(copy.deepcopy(hf_config)))


def tile_mlps(model: Any, tile: int) -> None:
    """Have the MLPs of a transformers model compute tile by tile, in place; again after their forwards were replaced.

    Args:
        model: the complete model, on any device; weights are not read.
        tile: most tokens that an MLP computes at a time.

    Raises:
        ModelError: there is no MLP that could, or tokens are distributed over experts.
    """
    for mlp in _tileable(model):
        if not isinstance(mlp.forward, _Tiled):
            mlp.forward = _Tiled(mlp.forward, tile)


def tiles_of(model: nn.Module) -> list[Any]:
    """Return the modules whose forward computes tiles."""
    return [module for module in model.modules() if isinstance(vars(module).get("forward"), _Tiled)]


def _tileable(model: Any) -> list[Any]:
    blocks = [block for block, _ in checkpointed_blocks(model)]
    names = (type(part).__name__ for block in blocks for part in block.modules() if part is not block)
    routed = next(filter(_ROUTED.search, names), None)
    found = [mlp for block in blocks for mlp in _mlps(block)]
    if routed is None and found:
        return found
    why = "has no block whose MLP is a module of its own"
    if routed is not None:
        why = f"distributes tokens over experts ({routed}), each of which gets few of them"
    raise ModelError(
        f"model.tiled_mlp: given for a {type(model).__name__}, which {why}; remove the key, and write"
        " model.activation_checkpointing: true"
    )


def _mlps(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if not _MLP.search(type(child).__name__):
            yield from _mlps(child)
        elif not any(isinstance(each, (nn.Conv1d, nn.Conv2d)) for each in child.modules()):
            yield child


class _Tiled:
    """The ``forward`` of an MLP that computes tiles.

    Args:
        forward: the MLP's own, of hidden states of shape (sequences, tokens, channels) or (tokens, channels), and
            further tensors of that shape.
        tile: most tokens at a time.
    """

    def __init__(self, forward: Any, tile: int) -> None:
        self.forward, self.tile = forward, tile

    def __call__(self, *states: Tensor) -> Tensor:
        shape = states[0].shape
        count = -(-shape[:-1].numel() // self.tile)
        if count < 2:
            made: Tensor = self.forward(*states)
            return made
        # equal tiles, lest the last one be too small to keep the device busy
        tiles = zip(*(torch.tensor_split(each.reshape(-1, each.shape[-1]), count) for each in states), strict=True)
        if torch.is_grad_enabled():
            parts = [checkpoint(self.forward, *tile, use_reentrant=False) for tile in tiles]
        else:
            parts = [self.forward(*tile) for tile in tiles]
        return torch.cat(parts).view(*shape[:-1], -1)
