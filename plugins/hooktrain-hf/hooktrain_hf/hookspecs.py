"""The hook that this plugin adds, so that what an export holds can be replaced without its swapping and verifying."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooktrain import hookspec

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from hooktrain import Recipe

__all__ = ["export_model"]


@hookspec(firstresult=True)
def export_model(
    module: Module, weights: Mapping[str, Tensor], folder: Path, dtype: Any, tokenizer: Any, recipe: Recipe
) -> Mapping[str, Tensor] | None:
    """Write the model of an export into a folder.

    Called: by the checkpoint engine ``huggingface``, which adds the tokenizer, reads everything back, compares it with
        what this returns, and only then moves the folder to its place.
    Ranks: the main rank only.
    Device: may use it.

    Args:
        module: the bare model; it must be left as it is.
        weights: all of its weights, whole, on the host; they may share memory with the model.
        folder: an empty folder.
        dtype: the torch dtype of the exported weights, or None for the one that they are kept in.
        tokenizer: None, or the tokenizer that was trained with.
        recipe: the structured recipe.

    Returns:
        Names and tensors that the folder's ``*.safetensors`` files hold; None declines, and the next plugin is asked.

    Default: ``hooktrain-hf`` writes transformers models for ``from_pretrained``.
    """
