"""Adapters on a frozen base for hooktrain: LoRA and the other methods of PEFT.

Other packages import from here only. Names are loaded when they are first used: importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hooktrain_peft.adapter import add_adapter, load_adapter
    from hooktrain_peft.config import PeftSettings
    from hooktrain_peft.weight_merge import merge_adapter

_HOME = {
    "PeftSettings": "hooktrain_peft.config",
    "add_adapter": "hooktrain_peft.adapter",
    "load_adapter": "hooktrain_peft.adapter",
    "merge_adapter": "hooktrain_peft.weight_merge",
}

__all__ = ["PeftSettings", "add_adapter", "load_adapter", "merge_adapter"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    globals()[name] = value = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
