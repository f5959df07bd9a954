"""What the ``torch`` strategy keeps on each device, for ``hooktrain plan``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hooktrain import MemoryEstimate, ModelEstimate, World
from hooktrain_torch.shard import blocks

if TYPE_CHECKING:
    from hooktrain import Recipe
    from hooktrain_torch.strategy_config import TorchConfig

__all__ = ["memory"]


def memory(config: TorchConfig, recipe: Recipe, world: World, model: ModelEstimate) -> MemoryEstimate:
    """Bytes on each rank's device, from the sizes of the model."""
    ranks = world.world_size
    spread = ranks if config.data_parallel == "fsdp2" else 1
    kept = {
        "weights": model.weight_bytes // spread,
        "optimizer": (model.state_bytes or 0) // spread,
        "gradients": model.trainable_bytes // spread,
    }
    notes = ["the optimizer's state is not known and left out"] if model.state_bytes is None else []
    if spread > 1:
        kept["gathered weights"] = _gathered(config, model)
        notes.append("gathered: what lies in no block, and two blocks at a time")
    activations = dict(model.activation_bytes or {})
    if model.activation_bytes is None:
        notes.append("activations are not known and left out")
    peak = sum(kept.values()) + sum(activations.values())
    if ranks == 1 and recipe.gradient_accumulation_steps == 1:
        # gradients come as activations go, and are given back after each step
        peak -= min(kept["gradients"], sum(activations.values()))
        notes.append("gradients and activations are not all there at the same time")
    return MemoryEstimate(device={**kept, **activations}, peak=peak, notes=notes)


def _gathered(config: TorchConfig, model: ModelEstimate) -> int:
    """Bytes of the weights that a rank has whole: the root's, one block that computes and one that is fetched."""
    narrow = config.dtype in ("bf16", "fp16") or (config.dtype == "auto" and torch.cuda.is_available())
    size = 2 if narrow else 4
    found = blocks(model.module)
    inside = {id(weight) for block in found for weight in block.parameters()}
    root = sum(weight.numel() for weight in model.module.parameters() if id(weight) not in inside)
    largest = sorted((sum(weight.numel() for weight in block.parameters()) for block in found), reverse=True)
    return (root + sum(largest[:2])) * size
