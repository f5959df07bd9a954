"""The recipe's ``model`` with ``type: liger``."""

from __future__ import annotations

import attrs
from hooktrain_hf import HFModelConfig

from hooktrain import field

__all__ = ["LAYER_KERNELS", "LigerModelConfig"]

LAYER_KERNELS = ("rope", "rms_norm", "layer_norm", "swiglu", "geglu", "relu_squared")
"""Kernels that replace a part of the model's layers."""


@attrs.frozen(kw_only=True)
class LigerModelConfig(HFModelConfig):
    """A causal language model as ``huggingface`` loads it, with Liger's Triton kernels in place of some of its layers.

    A layer kernel that the recipe does not set is applied where Liger has it on for the model's type.
    """

    rope: bool | None = field(default=None)
    """Whether rotary position embeddings are Liger's."""
    rms_norm: bool | None = field(default=None)
    """Whether RMSNorm is Liger's."""
    layer_norm: bool | None = field(default=None)
    """Whether LayerNorm is Liger's."""
    swiglu: bool | None = field(default=None)
    """Whether MLPs that are gated with SiLU are Liger's."""
    geglu: bool | None = field(default=None)
    """Whether MLPs that are gated with GELU are Liger's."""
    relu_squared: bool | None = field(default=None)
    """Whether squared ReLU is Liger's."""
    fused_linear_cross_entropy: bool = field(default=True)
    """Whether LM head and cross-entropy are one kernel, which never keeps logits."""
    cross_entropy: bool = field(default=False)
    """Whether the cross-entropy of logits is Liger's, with the LM head called before it; instead of the fused one."""

    @property
    def hides_logits(self) -> str:
        """The change to the recipe that makes the model return logits; empty where it does so already."""
        return "write model.fused_linear_cross_entropy: false" if self.fused_linear_cross_entropy else ""

    def __attrs_post_init__(self) -> None:
        if self.cross_entropy and self.fused_linear_cross_entropy:
            raise ValueError(
                "cross_entropy and fused_linear_cross_entropy are both true, expected at most one, as the latter makes"
                " no logits; write fused_linear_cross_entropy: false as well, or remove cross_entropy"
            )
