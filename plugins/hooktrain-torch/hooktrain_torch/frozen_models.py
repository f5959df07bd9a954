"""Placement of frozen models: whole on the device, in the processor's memory, or sharded over ranks with FSDP2."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch.nn import Module, Parameter

from hooktrain import ExtraModel
from hooktrain_torch.fsdp import shard_model

__all__ = ["place_frozen", "shard_frozen"]


def place_frozen(model: Module, extra: ExtraModel, device: torch.device) -> Module:
    """Cast a frozen model and place it on a device; with ``offload`` its weights are there only while they are used."""
    model.to(dtype=extra.torch_dtype)
    if not extra.offload or device.type == "cpu":
        return model.to(device)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
        kept = dict(module.named_parameters(recurse=False))
        if kept:
            module.register_forward_pre_hook(partial(_fetch, kept, device))
            module.register_forward_hook(partial(_release, kept), always_call=True)
    return model


def _fetch(kept: Mapping[str, Parameter], device: torch.device, module: Module, given: Any) -> None:
    # others than those kept, whose values a backward pass through the model may still need
    for name, parameter in kept.items():
        setattr(module, name, Parameter(parameter.to(device, non_blocking=True), requires_grad=False))


def _release(kept: Mapping[str, Parameter], module: Module, given: Any, made: Any) -> None:
    for name, parameter in kept.items():
        setattr(module, name, parameter)


def shard_frozen(model: Module, extra: ExtraModel, device: torch.device, dtype: torch.dtype) -> Any:
    """Cast a frozen model and shard it over all ranks, in place.

    Returns:
        The model, which has FSDP2's methods now.
    """
    from torch.distributed.fsdp import register_fsdp_forward_method

    model.to(dtype=extra.torch_dtype)
    sharded = shard_model(model, device, dtype, find_unused=False, offload=extra.offload)
    # FSDP2 takes what is called first for the outermost module, and somebody may call only a part
    sharded.begin_sharding = lambda: None
    register_fsdp_forward_method(sharded, "begin_sharding")
    sharded.begin_sharding()
    sharded.reshard()
    return sharded
