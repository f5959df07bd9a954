"""Models of transformers with Liger's kernels, and Liger's fused linear cross-entropy as the loss, for hooktrain."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hooktrain_liger.config import LigerModelConfig
    from hooktrain_liger.head_loss import CrossEntropy, FusedLinearCrossEntropy
    from hooktrain_liger.kernels import apply_kernels

__all__ = ["CrossEntropy", "FusedLinearCrossEntropy", "LigerModelConfig", "apply_kernels"]

_MODULES = {
    "CrossEntropy": "head_loss",
    "FusedLinearCrossEntropy": "head_loss",
    "LigerModelConfig": "config",
    "apply_kernels": "kernels",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
