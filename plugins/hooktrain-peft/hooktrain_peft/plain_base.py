"""Adapters that are made of the plain weights of a base, which is quantized after that: PiSSA, OLoRA and LoftQ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import torch
from hooktrain_hf import HFModelConfig, quantize_base, quantized_values
from torch import nn

from hooktrain_peft.compat import adapted_layers, method_settings

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

    from hooktrain import Recipe

__all__ = ["Packing", "put_adapter"]


@attrs.frozen(eq=False)
class Packing:
    """How a base is quantized once its adapter is made.

    Attributes:
        model: the recipe's ``model``, with its ``quantization``.
        recipe: that of the run; None where nothing is trained.
    """

    model: HFModelConfig
    recipe: Recipe | None = None


def put_adapter(model: Any, config: PeftConfig, packing: Packing | None) -> PeftModel:
    """Put a new adapter on a model.

    Args:
        model: a transformers model, plain where there is a ``packing``; it becomes part of the result.
        config: the method, and how its weights begin.
        packing: None, or how the base is quantized. Its weights are those that the adapter leaves: what PiSSA and OLoRA
            take out of them is in the adapter, and with LoftQ the adapter has what quantization loses.
    """
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    if packing is None:
        plain: Any = get_peft_model(model, config)
        return plain  # type: ignore[no-any-return]
    untyped: Any = config
    init = method_settings(config).get("init_lora_weights")
    untyped.init_lora_weights = True if init == "loftq" else init
    made: Any = get_peft_model(model, config)
    if init == "loftq":
        _loftq(made, packing.model, int(untyped.loftq_config["loftq_iter"]))
    adapter = get_peft_model_state_dict(made, save_embedding_layers=False)
    base = made.unload()
    quantize_base(base, packing.model, packing.recipe)
    untyped.init_lora_weights = True  # the base is what it has to be
    again: Any = get_peft_model(base, config)
    set_peft_model_state_dict(again, adapter)
    untyped.init_lora_weights = init
    return again  # type: ignore[no-any-return]


@torch.no_grad()
def _loftq(model: Any, config: HFModelConfig, iterations: int) -> None:
    """Split the weights of adapted layers into values that quantization keeps and a product of low rank.

    PEFT's own function needs a GPU, and does not divide by the adapter's scale, without which layer and adapter would
    add up to other weights than the base's wherever ``alpha`` is not the rank.
    """
    from peft.tuners.lora import LoraLayer

    head = model.get_base_model().get_output_embeddings()
    for _, layer in adapted_layers(model):
        held: Any = layer.get_base_layer()
        if type(held) is not nn.Linear or held is head or not isinstance(layer, LoraLayer):
            continue  # it is not quantized
        name = layer.active_adapters[0]
        weight, rank = held.weight.float(), layer.r[name]
        product = torch.zeros_like(weight)
        for _ in range(iterations):
            values = quantized_values((weight - product).to(held.weight.dtype), config)
            left, sizes, right = torch.linalg.svd(weight - values, full_matrices=False)
            roots = sizes[:rank].sqrt()
            left, right = left[:, :rank] * roots, roots[:, None] * right[:rank]
            product = left @ right
        held.weight.data = values.to(held.weight.dtype)
        layer.lora_A[name].weight.data = right.to(layer.lora_A[name].weight.dtype).contiguous()
        layer.lora_B[name].weight.data = (left / layer.scaling[name]).to(layer.lora_B[name].weight.dtype).contiguous()
