"""Models of transformers with Liger's kernels, and Liger's fused linear cross-entropy as the loss, for hooktrain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hooktrain import lazy_exports

if TYPE_CHECKING:
    from hooktrain_liger.config import LigerModelConfig as LigerModelConfig
    from hooktrain_liger.head_loss import CrossEntropy as CrossEntropy
    from hooktrain_liger.head_loss import FusedLinearCrossEntropy as FusedLinearCrossEntropy
    from hooktrain_liger.kernels import apply_kernels as apply_kernels

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
