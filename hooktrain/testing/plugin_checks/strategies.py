"""The strategies that shard, under which ``thorough=True`` repeats checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["STRATEGIES"]

STRATEGIES: Mapping[str, Mapping[str, Any]] = {
    "fsdp2": {"type": "torch", "data_parallel": "fsdp2"},
    "zero": {"type": "deepspeed", "zero_stage": 3},
}
"""The strategies of ``conformance(thorough=True)``, which shard weights, gradients and optimizer over two ranks."""
