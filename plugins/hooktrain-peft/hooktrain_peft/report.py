"""Summary of an adapter in one line, and what to know about its export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooktrain_hf import HFModelConfig

from hooktrain import ConfigDefaults, member
from hooktrain_peft.config import PeftSettings

if TYPE_CHECKING:
    from hooktrain import Recipe

__all__ = ["describe", "unloadable_base"]


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


def unloadable_base(recipe: Recipe, settings: PeftSettings) -> str:
    """Return a warning where PEFT cannot load the base of the exports by its name, as that of a GGUF file; or nothing.

    Args:
        recipe: of the run.
        settings: its section ``peft``, with an adapter.
    """
    model = recipe.model
    is_gguf = isinstance(model, HFModelConfig) and (model.gguf_file or Path(model.name_or_path).suffix == ".gguf")
    exports = any(member(config, ConfigDefaults, "exports") for config in recipe.checkpoint)
    if not is_gguf or not exports or settings.merge_on_export:
        return ""
    return (
        f"peft: the exported adapter names the GGUF file '{model.gguf_file or Path(model.name_or_path).name}' as its"
        " base, which PEFT's AutoPeftModelForCausalLM does not load; write peft.merge_on_export: true, or merge the"
        " two afterwards with `hooktrain export RUN_DIR --merge`"
    )


_FACTS = {"r": "r", "lora_alpha": "alpha", "alpha": "alpha"}
