"""Sharding of a model over ranks with FSDP2, block by block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import Module, ModuleList

__all__ = ["blocks", "shard_model"]


def shard_model(
    root: Module, device: torch.device, dtype: torch.dtype, find_unused: bool, offload: bool = False
) -> Any:
    """Shard a module over all ranks, in place.

    Args:
        root: what is called for each micro-batch. What lies in none of its blocks is gathered for the whole call.
        device: each rank's own.
        dtype: type of the gathered weights. Kept weights and summed gradients are float32.
        find_unused: whether a rank sends zeros for parameters that have no gradient there.
        offload: whether the shards are kept in the processor's memory.

    Returns:
        ``root``, which has FSDP2's methods now.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    policy = MixedPrecisionPolicy()
    if dtype is not torch.float32:
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    kept = CPUOffloadPolicy() if offload and device.type != "cpu" else OffloadPolicy()
    for block in blocks(root):
        fully_shard(block, mesh=mesh, mp_policy=policy, offload_policy=kept)
    fully_shard(root, mesh=mesh, mp_policy=policy, offload_policy=kept, reshard_after_forward=False)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            # summed, where FSDP2 would average: the loss is divided by the denominator of all ranks
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    if find_unused:
        result: Any = root
        result.set_reduce_scatter_unused_params(True)
    return root


def blocks(root: Module) -> list[Module]:
    """Return the model's layers: members of the outermost module lists that share no weight with anything else."""
    found = list(_members(root))
    uses = Counter(id(parameter) for _, parameter in root.named_parameters(remove_duplicate=False))
    return [block for block in found if _shares_nothing(block, uses)]


def _members(module: Module) -> Iterator[Module]:
    for child in module.children():
        if isinstance(module, ModuleList) and not isinstance(child, ModuleList):
            yield child
        else:
            yield from _members(child)


def _shares_nothing(block: Module, uses: Counter[int]) -> bool:
    inside = Counter(id(parameter) for _, parameter in block.named_parameters(remove_duplicate=False))
    return bool(inside) and all(uses[key] == count for key, count in inside.items())
