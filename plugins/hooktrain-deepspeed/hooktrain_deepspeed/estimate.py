"""Memory estimate of the ``deepspeed`` strategy, for ``hooktrain plan``."""

from __future__ import annotations

from typing import Any

import torch

from hooktrain import MemoryEstimate, ModelEstimate, Recipe, World
from hooktrain_deepspeed.config import DeepSpeedConfig, assemble, bucket_size

__all__ = ["estimate_memory"]

_LIVE = 1_000_000_000
"""Numbers of gathered weights that stage 3 keeps at most, where DeepSpeed's configuration does not set them."""


def estimate_memory(config: DeepSpeedConfig, recipe: Recipe, world: World, model: ModelEstimate) -> MemoryEstimate:
    """Return the bytes on each rank's device and on its host, from the sizes of the model.

    As in the tables of Rajbhandari et al. (2020): with stages 1 to 3 weights are in the precision of the computation,
    with a copy and the optimizer's state in float32 that are sharded over the ranks.
    """
    gpu = config.device.startswith("cuda") or (config.device == "auto" and torch.cuda.is_available())
    dtype = config.dtype if config.dtype != "auto" else "bf16" if gpu else "fp32"
    settings = assemble(config, recipe, world, dtype)
    zero: dict[str, Any] = settings["zero_optimization"]
    stage, ranks, size = int(zero["stage"]), world.world_size, 4 if dtype == "fp32" else 2
    notes = [f"strategy.dtype: auto computes in {dtype} on this machine"] if config.dtype == "auto" else []
    notes += ["the optimizer's state is not known and not counted"] if model.state_numbers is None else []
    device, host = {}, {}
    if stage == 0:
        device = {
            "weights": model.weight_bytes,
            "optimizer": model.state_bytes or 0,
            "gradients": model.trainable_bytes,
        }
    else:
        shards = {"weights": ranks if stage == 3 else 1, "gradients": ranks if stage >= 2 else 1}
        kept = {
            "weights": model.parameters * size // shards["weights"],
            "weights in float32": 4 * model.trainable // ranks,
            "optimizer": 4 * (model.state_numbers or 0) // ranks,
            "gradients": model.trainable * size // shards["gradients"],
        }
        offloaded = _on_host(zero, "offload_optimizer", ("weights in float32", "optimizer", "gradients"))
        offloaded |= _on_host(zero, "offload_param", ("weights",))
        host = {name: value for name, value in kept.items() if name in offloaded}
        device = {name: value for name, value in kept.items() if name not in offloaded}
        buffers = 2 if zero.get("overlap_comm") and stage < 3 else 1
        device["gradients to be sent"] = bucket_size(settings, model.trainable) * size * buffers
        if stage == 3:
            live = int(_number(zero.get("stage3_max_live_parameters"), _LIVE))
            device["gathered weights"] = min(live, model.parameters) * size
            notes.append("gathered weights are at most stage3_max_live_parameters")
    for name, frozen in model.frozen.items():
        as_computed = stage > 0 and size == 2 and not frozen.dtype_is_set
        kept_bytes = frozen.parameters * size if as_computed else frozen.weight_bytes
        (host if gpu and frozen.offload else device)[f"model {name}"] = kept_bytes // (ranks if stage == 3 else 1)
    if model.activation_bytes is None:
        notes.append("activations are not known and not counted")
    return MemoryEstimate(device={**device, **(model.activation_bytes or {})}, host=host, notes=notes)


def _on_host(zero: dict[str, Any], section: str, names: tuple[str, ...]) -> set[str]:
    return set(names) if zero.get(section, {}).get("device", "none") != "none" else set()


def _number(value: Any, default: int) -> float:
    return default if value in (None, "auto") else float(value)
