"""Names of torch that are private, and attributes that only some objects have.

Seen to work with torch 2.13.0 and parameters of DeepSpeed 0.19.8.
"""

from __future__ import annotations

import importlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["cpu_has_bf16", "exchange_group_timeouts", "full_shape"]


def cpu_has_bf16() -> bool:
    """Return whether the processor has instructions that multiply bf16."""
    import torch

    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def exchange_group_timeouts(timeouts: tuple[Any, Any]) -> tuple[timedelta, timedelta | None]:
    """Set the default timeouts of new process groups, for gloo and for nccl, and return those before."""
    c10d: Any = importlib.import_module("torch.distributed.distributed_c10d")
    before = c10d.default_pg_timeout, c10d.default_pg_nccl_timeout
    c10d.default_pg_timeout, c10d.default_pg_nccl_timeout = timeouts
    return before


def full_shape(parameter: Tensor) -> tuple[int, ...]:
    """Return the shape of a weight, also where ZeRO-3 has sharded it, which leaves a vector."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
