"""Parts of a vision-language model that text does not reach: its vision tower, its projector."""

from __future__ import annotations

from typing import Any

from torch import nn

from hooktrain_hf.compat import decoder_of, has_vision

__all__ = ["freeze_vision", "parts_without_text"]


def parts_without_text(model: Any) -> tuple[str, ...]:
    """Return the names of the largest modules outside of a vision-language model's embedding, decoder and head.

    Args:
        model: a transformers model without adapters; one without images has no such parts.
    """
    if not has_vision(model.config):
        return ()
    decoder = decoder_of(model)
    text = {model, *_inside(decoder), *_inside(model.get_input_embeddings()), *_inside(model.get_output_embeddings())}
    return tuple(_outside(model, text, ""))


def freeze_vision(model: Any) -> None:
    """Freeze a vision-language model's weights outside of its embedding, decoder and head."""
    kept = (decoder_of(model), model.get_input_embeddings(), model.get_output_embeddings())
    trained = {weight for module in kept if module is not None for weight in module.parameters()}
    for weight in model.parameters():
        weight.requires_grad_(weight in trained)


def _inside(module: nn.Module | None) -> set[nn.Module]:
    return set() if module is None else set(module.modules())


def _outside(module: nn.Module, text: set[nn.Module], prefix: str) -> list[str]:
    names: list[str] = []
    for name, child in module.named_children():
        if child in text:
            continue
        if text.isdisjoint(child.modules()):
            names.append(f"{prefix}{name}")
        else:
            names += _outside(child, text, f"{prefix}{name}.")
    return names
