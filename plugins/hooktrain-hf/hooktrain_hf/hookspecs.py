"""The hook ``export_model``, with which a plugin writes a model in its own form; exports stay atomic and verified."""

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
        module: the bare model; it must not be changed.
        weights: all of its weights, complete, on the host; they may share memory with the model.
        folder: an empty folder.
        dtype: the torch dtype of the exported weights, or None for the one that they are kept in.
        tokenizer: None, or the tokenizer that was trained with.
        recipe: the structured recipe.

    Returns:
        Names and tensors of the folder's ``*.safetensors`` files; None leaves the work to the next plugin.

    Default: ``hooktrain-hf`` writes transformers models for ``from_pretrained``.
    """
