"""Summary of an adapter in one line."""

from __future__ import annotations

from typing import Any

__all__ = ["describe"]


def describe(model: Any) -> str:
    """Describe an adapter: ``peft: lora (r 16, alpha 32) on 210 modules of LlamaForCausalLM, 4,884,480 weights, ...``.

    Args:
        model: base and adapter.
    """
    from hooktrain_peft.compat import adapted_layers, method_name, method_settings

    config = model.active_peft_config
    settings = method_settings(config)
    facts = [f"{text} {settings[key]}" for key, text in _FACTS.items() if isinstance(settings.get(key), (int, float))]
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    listed = f" ({', '.join(facts)})" if facts else ""
    size = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return (
        f"peft: {method_name(config).lower()}{listed} on {len(adapted_layers(model))} modules of"
        f" {type(model.get_base_model()).__name__}, {trained:,} weights, {size / 2**20:,.1f} MiB"
    )


_FACTS = {"r": "r", "lora_alpha": "alpha", "alpha": "alpha"}
