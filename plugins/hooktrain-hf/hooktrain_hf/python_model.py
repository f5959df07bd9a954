"""Preparation of transformers models passed from Python."""

from __future__ import annotations

from typing import Any

from hooktrain import ModelError
from hooktrain_hf.attention import activate_attention, restore_attention, set_attention
from hooktrain_hf.block_settings import check_checkpointing, unknown_operators
from hooktrain_hf.compat import devices_of, unwrap_adapters
from hooktrain_hf.embeddings import check_vocabulary, fit_vocabulary
from hooktrain_hf.tokenizer import added_tokens

__all__ = ["activate_model", "adopt_model", "release_model"]


def adopt_model(model: Any, config: Any, tokenizer: Any) -> Any | None:
    """Prepare a transformers model, or one with an adapter on it, for training, without moving it.

    Args:
        model: any module.
        config: the recipe's ``model``, of type ``python``.
        tokenizer: None, or the tokenizer whose ids the model must be able to embed. Its embedding grows only for
            tokens that the recipe adds.

    Returns:
        The model; None when it is no transformers model.

    Raises:
        ModelError: it is divided over devices, does not support ``model.attn_implementation``, or embeds fewer tokens
            than the tokenizer has.
    """
    from transformers import PreTrainedModel

    inner = unwrap_adapters(model)
    if not isinstance(inner, PreTrainedModel):
        return None
    devices = devices_of(inner)
    if len(devices) > 1:
        raise ModelError(
            f"model: given a {type(inner).__name__} on the devices {', '.join(sorted(map(str, devices)))}, expected one"
            " on a single device; load it without device_map, and let the strategy divide it"
        )
    if tokenizer is not None and added_tokens(tokenizer):
        fit_vocabulary(inner, tokenizer)
    elif tokenizer is not None:
        check_vocabulary(inner, tokenizer)
    set_attention(inner, config.attn_implementation)
    if config.activation_checkpointing:
        _recompute(inner, config.activation_checkpointing)
    return model


def _recompute(model: Any, setting: Any) -> None:
    from hooktrain_hf.activation_checkpointing import enable_checkpointing

    try:
        check_checkpointing(None, None, setting)
    except ValueError as problem:
        raise ModelError(f"model.activation_checkpointing: {problem}") from None
    for found in unknown_operators(setting):
        raise ModelError(str(found))
    enable_checkpointing(model, setting)


def release_model(model: Any) -> None:
    """Undo what :func:`adopt_model` changed without being asked: the attention that the model's config names."""
    restore_attention(unwrap_adapters(model))


def activate_model(model: Any) -> None:
    """Set the attention again that :func:`release_model` took away."""
    activate_attention(unwrap_adapters(model))
