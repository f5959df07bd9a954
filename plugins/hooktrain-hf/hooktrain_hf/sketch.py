"""A transformers model without weights, and what its forward pass would keep, for ``hooktrain plan``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hooktrain import ModelError
from hooktrain_hf.location import resolve
from hooktrain_hf.model import HFModelConfig, compute_activations_again, load_config, random_model
from hooktrain_hf.quiet import quiet_transformers

__all__ = ["activations", "sketch"]

_ATTENTION = "hooktrain_sketch"


def sketch(config: HFModelConfig) -> Any:
    """The model of a recipe on the device in whose context this is called, from its config alone.

    Raises:
        ModelError: the config is not on this machine, or cannot be used.
    """
    location = resolve(config.name_or_path, config.gguf_file, "model.name_or_path")
    with quiet_transformers():
        try:
            with torch.device("cpu"):  # reading a GGUF file's header computes with tensors
                hf_config = load_config(config, location, offline=True)
        except ModelError as problem:
            if location.local:
                raise
            raise ModelError(
                f"'{config.name_or_path}' is not downloaded, and a plan does not ask the network"
            ) from problem
        model = random_model(config, hf_config)
    if config.activation_checkpointing:
        compute_activations_again(model)
    return model


class _Attention(torch.autograd.Function):
    """Attention that keeps what its fused kernels keep: inputs and output, and no scores of tokens by tokens."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # (rows, heads, tokens, channels)
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


def activations(recipe: Any, model: Any, rows: int, tokens: int) -> Mapping[str, int]:
    """What the decoder keeps for the backward pass of a micro-batch, in the precision of the strategy.

    Everything that autograd saves is counted once, weights excepted; copies of weights in the precision of the
    computation are among it. An attention that keeps scores of tokens by tokens (eager) takes more.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(_ATTENTION, _attend)  # type: ignore[no-untyped-call]
    name = recipe.model.dtype if recipe.model.dtype != "auto" else getattr(recipe.strategy, "dtype", "auto")
    if name == "auto":
        device = str(getattr(recipe.strategy, "device", "auto"))
        cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
        name = "bf16" if cuda or _native_bf16() else "fp32"
    dtype = torch.float16 if name == "fp16" else torch.bfloat16
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else base
    decoder.config._attn_implementation = _ATTENTION
    kept: dict[int, tuple[Any, int]] = {}  # with the storage itself, whose address must not be used again
    weights = {id(weight.untyped_storage()) for weight in model.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[id(storage)] = (storage, storage.nbytes())
        return tensor

    ids = torch.zeros(rows, tokens, dtype=torch.long)
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", dtype, enabled=name != "fp32"),
    ):
        decoder(input_ids=ids, attention_mask=None, use_cache=False)
    return {"activations": sum(size for key, (_, size) in kept.items() if key not in weights)}


def _native_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
