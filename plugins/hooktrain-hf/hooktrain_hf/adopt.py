"""A transformers model that was built in Python gets what one that is loaded here has."""

from __future__ import annotations

from typing import Any

from hooktrain import ModelError
from hooktrain_hf.attention import choose
from hooktrain_hf.model import check_vocabulary, compute_activations_again

__all__ = ["adopt"]


def adopt(model: Any, config: Any, tokenizer: Any) -> Any | None:
    """Prepare a transformers model, or one with an adapter on it, where it is.

    Args:
        model: any module.
        config: the recipe's ``model``, of type ``python``.
        tokenizer: None, or the tokenizer whose ids the model must be able to embed.

    Returns:
        The model; None when it is no transformers model.

    Raises:
        ModelError: it is spread over devices, cannot have the attention that is asked for, or embeds fewer tokens than
            the tokenizer has.
    """
    from transformers import PreTrainedModel

    inner = model
    while callable(base := getattr(inner, "get_base_model", None)) and base() is not inner:
        inner = base()
    if not isinstance(inner, PreTrainedModel):
        return None
    places = set((getattr(inner, "hf_device_map", None) or {}).values())
    if len(places) > 1:
        raise ModelError(
            f"model: given a {type(inner).__name__} that is spread over {', '.join(sorted(map(str, places)))}, expected"
            " one on a single device; load it without device_map, and let the strategy divide it"
        )
    if tokenizer is not None:
        check_vocabulary(inner, tokenizer)
    choose(inner, config.attn_implementation)
    if config.activation_checkpointing:
        compute_activations_again(inner)
    return model
