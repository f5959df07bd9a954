"""Memory estimate of the ``torch`` strategy, for ``hooktrain plan``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hooktrain import MemoryEstimate, ModelEstimate, World
from hooktrain_torch.fsdp import blocks

if TYPE_CHECKING:
    from hooktrain import Recipe
    from hooktrain_torch.strategy_config import TorchConfig

__all__ = ["estimate_memory"]


def estimate_memory(config: TorchConfig, recipe: Recipe, world: World, model: ModelEstimate) -> MemoryEstimate:
    """Return the bytes on each rank's device, from the sizes of the model."""
    ranks = world.world_size
    shards = ranks if config.data_parallel == "fsdp2" else 1
    kept = {
        "weights": model.weight_bytes // shards,
        "optimizer": (model.state_bytes or 0) // shards,
        "gradients": model.trainable_bytes // shards,
    }
    notes = ["the optimizer's state is not known and not counted"] if model.state_bytes is None else []
    if shards > 1:
        kept["gathered weights"] = _gathered(config, model)
        notes.append("gathered: what lies in no block, and two blocks at a time")
    activations = dict(model.activation_bytes or {})
    if model.activation_bytes is None:
        notes.append("activations are not known and not counted")
    peak = sum(kept.values()) + sum(activations.values())
    if ranks == 1 and recipe.gradient_accumulation_steps == 1:
        # gradients appear while activations are freed, and are freed after each step
        peak -= min(kept["gradients"], sum(activations.values()))
        notes.append("gradients replace activations during backward: only the larger of the two counts")
    return MemoryEstimate(device={**kept, **activations}, peak=peak, notes=notes)


def _gathered(config: TorchConfig, model: ModelEstimate) -> int:
    """Return the bytes of gathered weights: the root's, one block that computes and one that is fetched."""
    narrow = config.dtype in ("bf16", "fp16") or (config.dtype == "auto" and torch.cuda.is_available())
    size = 2 if narrow else 4
    found = blocks(model.module)
    inside = {id(weight) for block in found for weight in block.parameters()}
    root = sum(weight.numel() for weight in model.module.parameters() if id(weight) not in inside)
    largest = sorted((sum(weight.numel() for weight in block.parameters()) for block in found), reverse=True)
    return (root + sum(largest[:2])) * size
