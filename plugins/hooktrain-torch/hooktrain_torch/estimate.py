"""Memory estimate of the ``torch`` strategy, for ``hooktrain plan``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hooktrain import MemoryEstimate, ModelEstimate, World
from hooktrain_torch.fsdp import blocks
from hooktrain_torch.half_precision import describe_slow_half
from hooktrain_torch.ranks import native_bf16

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
    dtype = _planned_dtype(config)
    notes = [f"strategy.dtype: auto computes in {dtype} on this machine"] if config.dtype == "auto" else []
    on_gpu = config.device.startswith("cuda") or (config.device == "auto" and torch.cuda.is_available())
    slow = describe_slow_half(config.dtype, torch.device("cuda" if on_gpu else "cpu"))
    notes += [slow] if slow else []
    notes += ["the optimizer's state is not known and not counted"] if model.state_bytes is None else []
    host: dict[str, int] = {}
    for name, frozen in model.frozen.items():
        offloaded = frozen.offload and _planned_device(config).type != "cpu"
        (host if offloaded else kept)[f"model {name}"] = frozen.weight_bytes // shards
    if shards > 1:
        size = 4 if dtype == "fp32" else 2
        kept["gathered weights"] = sum(_gathered(each, size) for each in (model, *model.frozen.values()))
        notes.append("gathered: what lies in no block, and two blocks at a time")
    activations = dict(model.activation_bytes or {})
    if model.activation_bytes is None:
        notes.append("activations are not known and not counted")
    peak = sum(kept.values()) + sum(activations.values())
    if ranks == 1 and recipe.gradient_accumulation_steps == 1:
        # gradients appear while activations are freed, and are freed after each step
        peak -= min(kept["gradients"], sum(activations.values()))
        notes.append("gradients replace activations during backward: only the larger of the two counts")
    return MemoryEstimate(device={**kept, **activations}, host=host, peak=peak, notes=notes)


def _planned_dtype(config: TorchConfig) -> str:
    """Return the precision of the computation, which the strategy chooses in the same way for the device it has."""
    if config.dtype != "auto":
        return config.dtype
    device = _planned_device(config)
    return "bf16" if device.type != "cpu" or native_bf16(device) else "fp32"


def _planned_device(config: TorchConfig) -> torch.device:
    on_gpu = config.device.startswith("cuda") or (config.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if on_gpu else "cpu")


def _gathered(model: ModelEstimate, size: int) -> int:
    """Return the bytes of gathered weights: the root's, one block that computes and one that is fetched."""
    found = blocks(model.module)
    inside = {id(weight) for block in found for weight in block.parameters()}
    root = sum(weight.numel() for weight in model.module.parameters() if id(weight) not in inside)
    largest = sorted((sum(weight.numel() for weight in block.parameters()) for block in found), reverse=True)
    return (root + sum(largest[:2])) * size
