"""Names of torch that are private, and attributes that only some objects have.

Seen to work with torch 2.13.0, parameters of DeepSpeed 0.19.8 and torchao 0.18.0.
"""

from __future__ import annotations

import importlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

__all__ = [
    "cpu_has_bf16",
    "cpu_has_fp16",
    "exchange_group_timeouts",
    "full_shape",
    "inner_tensors",
    "is_fake",
    "keep_from_ddp",
    "new_state",
    "wrapped_tensors",
]


def cpu_has_bf16() -> bool:
    """Return whether the processor has instructions that multiply bf16."""
    import torch

    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def cpu_has_fp16() -> bool:
    """Return whether the processor has instructions that multiply fp16."""
    import torch

    return bool(torch.cpu._is_amx_fp16_supported())


def exchange_group_timeouts(timeouts: tuple[Any, Any]) -> tuple[timedelta, timedelta | None]:
    """Set the default timeouts of new process groups, for gloo and for nccl, and return those before."""
    c10d: Any = importlib.import_module("torch.distributed.distributed_c10d")
    before = c10d.default_pg_timeout, c10d.default_pg_nccl_timeout
    c10d.default_pg_timeout, c10d.default_pg_nccl_timeout = timeouts
    return before


def full_shape(parameter: Tensor) -> tuple[int, ...]:
    """Return the shape of a weight, also where ZeRO-3 has sharded it, which leaves a vector."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def is_fake(tensor: Tensor) -> bool:
    """Return whether a tensor is one of a plan, which has no values."""
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(tensor, FakeTensor)


def new_state(optimizer: Any, parameter: Tensor, *, signed: bool) -> Any:
    """Make a state of torchao's optimizers for a parameter: quantized, or a plain tensor for a small one."""
    return optimizer._new_buffer(parameter, signed)


def inner_tensors(value: Any) -> dict[str, Tensor]:
    """Return codes and scale of a quantized state of torchao's, by name; empty for any other value."""
    if not hasattr(value, "__tensor_flatten__") or not hasattr(value, "codes"):
        return {}
    return {"codes": value.codes, "scale": value.scale}


def wrapped_tensors(value: Any) -> dict[str, Tensor]:
    """Return the tensors inside a quantized weight of torchao's, by name; empty for any other value."""
    kind = type(value)
    if not kind.__module__.startswith("torchao.") or not hasattr(kind, "__tensor_flatten__"):
        return {}
    names, _ = value.__tensor_flatten__()
    return {name: getattr(value, name) for name in names if getattr(value, name) is not None}


def keep_from_ddp(module: Module) -> None:
    """Keep frozen weights of torchao's from DistributedDataParallel, which cannot send them; all ranks read the same.

    Args:
        module: what DistributedDataParallel is about to wrap.
    """
    from torch.nn.parallel import DistributedDataParallel

    names = [name for name, weight in module.named_parameters() if wrapped_tensors(weight)]
    if names:
        ddp: Any = DistributedDataParallel
        ddp._set_params_and_buffers_to_ignore_for_model(module, names)
