"""Merges for ``hooktrain export --merge``, compared with the adapter on its base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from hooktrain_hf import is_quantized, torch_dtype
from torch import Tensor

from hooktrain import CheckpointError
from hooktrain_peft.adapter import on_dense_base
from hooktrain_peft.weight_merge import merge_adapter

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

__all__ = ["merge_model"]

_LIMITS = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 0.15}
"""Largest difference of logits as a share of their norm, as rounding in every layer causes it. Each layer is compared
in float32 when it is merged; this comparison finds weights that were tied or lost."""
_PROBE = 16
"""Tokens on which logits are compared."""


def merge_model(model: PeftModel, dtype: str | None) -> PreTrainedModel:
    """Merge an adapter into its base and compare the logits before and after.

    Args:
        model: base and adapter; it cannot be used afterwards.
        dtype: precision of the written weights; a quantized base is dequantized once, in float32, and merged before its
            weights are rounded to it, or to that of the embedding.

    Raises:
        CheckpointError: the logits differ.
        ModelError: the method cannot be merged.
    """
    rounded = None
    if is_quantized(model):
        base: Any = model.get_base_model()
        rounded = torch_dtype(dtype) if dtype else base.get_input_embeddings().weight.dtype
        model = on_dense_base(model, model.state_dict())
    expected = _logits(model)
    merged: Any = merge_adapter(model)
    if rounded is not None:
        merged.to(rounded)
    kept = merged.get_input_embeddings().weight.dtype
    difference = float((_logits(merged) - expected).norm() / expected.norm())
    if not difference <= _LIMITS[kept]:
        raise CheckpointError(
            f"export --merge: the logits of the merged model differ from the adapter's by {difference:.1e} of their"
            f" size, expected at most {_LIMITS[kept]:.0e} in {str(kept).removeprefix('torch.')}; nothing was"
            " written; try --dtype fp32, or use the adapter together with its base"
        )
    return merged  # type: ignore[no-any-return]


@torch.no_grad()
def _logits(model: Any) -> Tensor:
    """Return the logits of a few tokens from all over the vocabulary, shape (1, tokens, vocabulary)."""
    model.eval()
    size = model.get_input_embeddings().weight.shape[0]
    ids = torch.linspace(0, size - 1, _PROBE).long()[None]  # (1, tokens)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits.float()
