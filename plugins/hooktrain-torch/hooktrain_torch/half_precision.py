"""What half precision costs on a processor without instructions for it, measured in a tenth of a second."""

from __future__ import annotations

import time

import torch

from hooktrain_torch.ranks import native_half

__all__ = ["describe_slow_half", "slowdown"]

_SECONDS = 0.04
"""For each of the two types; a product is finished when it has begun."""
_WORTH_MENTIONING = 1.5


def describe_slow_half(name: str, device: torch.device, where: str = "strategy.dtype") -> str:
    """Return a warning for a recipe that sets ``bf16`` or ``fp16`` where float32 is faster; empty for any other.

    Args:
        name: the precision that the recipe sets, or ``auto``.
        device: where the run computes.
        where: the recipe's key.
    """
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if name not in dtypes or device.type != "cpu" or native_half(dtypes[name]):
        return ""
    factor = slowdown(dtypes[name])
    if factor < _WORTH_MENTIONING:
        return ""
    return (
        f"{where}: given {name} (here or as model.dtype), but this processor has no instructions for it, and a matrix"
        f" product takes {factor:,.0f} times as long as in float32; write fp32, or auto, which is fp32 here"
    )


def slowdown(dtype: torch.dtype) -> float:
    """Return how many times as long as in float32 a matrix product takes on the processor, by the fastest of each."""
    return _fastest(dtype) / _fastest(torch.float32)


def _fastest(dtype: torch.dtype) -> float:
    one, other = torch.ones(64, 256, dtype=dtype), torch.ones(256, 256, dtype=dtype)
    found, end = float("inf"), time.perf_counter() + _SECONDS
    while True:
        began = time.perf_counter()
        one @ other
        now = time.perf_counter()
        found = min(found, now - began)
        if now > end:
            return found
