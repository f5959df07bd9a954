"""DeepSpeed for hooktrain.

Other packages import the names below from here. They are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hooktrain_deepspeed.checkpoint import DeepSpeedCheckpointConfig
    from hooktrain_deepspeed.config import DeepSpeedConfig
    from hooktrain_deepspeed.strategy import DeepSpeedStrategy

_HOME = {
    "DeepSpeedCheckpointConfig": "hooktrain_deepspeed.checkpoint",
    "DeepSpeedConfig": "hooktrain_deepspeed.config",
    "DeepSpeedStrategy": "hooktrain_deepspeed.strategy",
}

__all__ = ["DeepSpeedCheckpointConfig", "DeepSpeedConfig", "DeepSpeedStrategy"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hooktrain_deepspeed' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)
