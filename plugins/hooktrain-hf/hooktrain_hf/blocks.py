"""A model's blocks as the recipe has them: recomputed, tiled, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hooktrain import ConfigDefaults, ModelError, member
from hooktrain_hf.block_settings import ON_HOST, compilation_of

if TYPE_CHECKING:
    from hooktrain import Recipe

__all__ = ["accept_blocks", "set_up_blocks", "tile_again"]

_TILE = 1024
"""Tokens of a tile, where the recipe gives no number."""


def accept_blocks(recipe: Recipe | None, config: Any, hf_config: Any, make: Callable[[Any], Any]) -> None:
    """Raise ModelError where the model, or the device of the run, does not support the settings; no weights are read.

    Args:
        recipe: that of the run; None where nothing is trained.
        config: the recipe's ``model``, checked.
        hf_config: transformers' config of the model.
        make: makes a model of such a config.
    """
    if config.tiled_mlp:
        from hooktrain_hf.tiled_mlp import require_mlps

        require_mlps(make, hf_config)
    if config.activation_offload and recipe is not None:
        import torch

        if str(member(recipe.strategy, ConfigDefaults, "device")) == "cpu" or not torch.cuda.is_available():
            raise ModelError(f"model.activation_offload: given true without a GPU, {ON_HOST}")


def set_up_blocks(model: Any, config: Any, *, planned: bool = False) -> None:
    """Have the blocks of a model recompute, tile and compile what the recipe says; a planned model is not compiled."""
    if config.activation_checkpointing:
        from hooktrain_hf.activation_checkpointing import enable_checkpointing

        enable_checkpointing(model, config.activation_checkpointing, config.activation_offload)
    tile_again(model, config)
    if not planned and (compilation := compilation_of(config)) is not None:
        from hooktrain_hf.attention import expect_compiled_blocks
        from hooktrain_hf.compiled_blocks import compile_blocks

        compile_blocks(model, compilation)
        expect_compiled_blocks(model)


def tile_again(model: Any, config: Any) -> None:
    """Have the MLPs of a model tiled that the recipe tiles, also after their forwards have been replaced."""
    if config.tiled_mlp:
        from hooktrain_hf.tiled_mlp import tile_mlps

        tile_mlps(model, _TILE if config.tiled_mlp is True else config.tiled_mlp)
