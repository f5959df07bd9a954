"""Meta models and the memory that their activations would take, for ``hooktrain plan``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hooktrain import ConfigDefaults, ModelError, member
from hooktrain_hf.compat import (
    decoder_of,
    enable_activation_checkpointing,
    has_vision,
    native_bf16,
    set_attention_implementation,
    unwrap_adapters,
)
from hooktrain_hf.freeze import freeze
from hooktrain_hf.model import HFModelConfig, load_config, location_of, random_model
from hooktrain_hf.quantization import quantization_of
from hooktrain_hf.quantized_layers import plan_quantization, unpacked_numbers
from hooktrain_hf.verbosity import quiet_transformers
from hooktrain_hf.vision import freeze_vision

if TYPE_CHECKING:
    from hooktrain import Recipe

__all__ = ["estimate_activations", "make_meta_model"]

_ATTENTION = "hooktrain_meta"


def make_meta_model(config: HFModelConfig) -> Any:
    """Make a recipe's model from its config alone, on the device in whose context this is called.

    Raises:
        ModelError: the config is not on this machine, or cannot be used.
    """
    location = location_of(config)
    with quiet_transformers():
        try:
            with torch.device("cpu"):  # reading a GGUF file's header computes with tensors
                hf_config = load_config(config, location, offline=True)
        except ModelError as problem:
            if location.local:
                raise
            raise ModelError(
                f"'{config.name_or_path}' is not downloaded, and a plan does not use the network"
            ) from problem
        model = random_model(config, hf_config)
    if (quantization := quantization_of(config)) is not None:
        plan_quantization(model, quantization)
    if has_vision(hf_config) and not config.train_vision:
        freeze_vision(model)
    freeze(model, config.freeze)
    if config.activation_checkpointing:
        enable_activation_checkpointing(model)
    return model


class _Attention(torch.autograd.Function):
    """Attention that keeps what fused kernels keep: inputs and output, and no scores of tokens by tokens."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # (sequences, heads, tokens, channels)
        made = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, made)
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    made: Any = _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]
    return made.transpose(1, 2), None


def estimate_activations(recipe: Recipe, model: Any, sequences: int, tokens: int) -> Mapping[str, int]:
    """Estimate the bytes that the decoder keeps for the backward pass of a micro-batch, in the strategy's precision.

    Everything that autograd saves is counted once, weights excepted; copies of weights in the precision of the
    computation are included. An attention that keeps scores of tokens by tokens (eager) takes more.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(_ATTENTION, _attend)
    name = member(recipe.model, ConfigDefaults, "dtype")
    name = member(recipe.strategy, ConfigDefaults, "dtype") if name == "auto" else name
    if name == "auto":
        device = str(member(recipe.strategy, ConfigDefaults, "device"))
        cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
        name = "bf16" if cuda or native_bf16() else "fp32"
    dtype = torch.float16 if name == "fp16" else torch.bfloat16
    decoder = decoder_of(unwrap_adapters(model))
    set_attention_implementation(decoder, _ATTENTION)
    kept: dict[int, tuple[Any, int]] = {}  # with the storage itself, lest its id be used again
    weights = {id(weight.untyped_storage()) for weight in model.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[id(storage)] = (storage, storage.nbytes())
        return tensor

    ids = torch.zeros(sequences, tokens, dtype=torch.long)
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", dtype, enabled=name != "fp32"),
    ):
        decoder(input_ids=ids, attention_mask=None, use_cache=False)
    made = {"activations": sum(size for key, (_, size) in kept.items() if key not in weights)}
    if unpacked := unpacked_numbers(model):
        made["unpacked weights"] = unpacked * (4 if name == "fp32" else 2)
    return made
