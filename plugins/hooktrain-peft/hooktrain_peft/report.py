"""One line about an adapter."""

from __future__ import annotations

from typing import Any

__all__ = ["describe"]


def describe(model: Any) -> str:
    """What is trained, such as ``peft: lora (r 16, alpha 32) on 210 modules of LlamaForCausalLM, 4,884,480 weights``.

    Args:
        model: base and adapter.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    config = model.active_peft_config
    method = str(getattr(config.peft_type, "value", config.peft_type)).lower()
    facts = [f"{text} {getattr(config, name)}" for name, text in _FACTS.items() if _said(config, name)]
    layers = sum(isinstance(module, BaseTunerLayer) for module in model.modules())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    size = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return (
        f"peft: {method}{' (' + ', '.join(facts) + ')' if facts else ''} on {layers} modules of"
        f" {type(model.get_base_model()).__name__}, {trained:,} weights, {size / 2**20:,.1f} MiB"
    )


_FACTS = {"r": "r", "lora_alpha": "alpha", "alpha": "alpha"}


def _said(config: Any, name: str) -> bool:
    return isinstance(getattr(config, name, None), (int, float))
