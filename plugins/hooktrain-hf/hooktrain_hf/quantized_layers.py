"""Linear layers in 4 and 8 bits: made from plain ones, made plain again, and stood in for in a plan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hooktrain import import_quietly
from hooktrain_hf.compat import (
    has_packed_weight,
    mark_as_quantized,
    native_bf16,
    unpacked,
    use_plain_kernels,
)

if TYPE_CHECKING:
    from hooktrain_hf.quantization import Quantization

__all__ = [
    "bitsandbytes_config",
    "finish_loading",
    "is_quantized",
    "make_dense",
    "plan_quantization",
    "quantize",
    "unpacked_numbers",
]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_BLOCK = 64
"""Weights that share a scale, where the recipe sets no other number; what transformers loads."""
_NESTED = 256
"""Scales that share a scale, where they are quantized too."""


def is_quantized(model: nn.Module) -> bool:
    """Return whether a model has layers in 4 or 8 bits of bitsandbytes or torchao."""
    return any(has_packed_weight(module) for module in model.modules())


def bitsandbytes_config(quantization: Quantization) -> Any:
    """Return what has transformers quantize each weight as it reads it; None where only :func:`quantize` can."""
    if quantization.type == "int8" or quantization.block not in (None, _BLOCK):
        return None
    import_quietly("bitsandbytes")
    from transformers import BitsAndBytesConfig

    auto = quantization.compute_dtype == "auto"
    made: Any = BitsAndBytesConfig
    return made(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.type,
        bnb_4bit_use_double_quant=quantization.double,
        bnb_4bit_compute_dtype=torch.float32 if auto else _DTYPES[quantization.compute_dtype],
    )


def quantize(model: Any, quantization: Quantization) -> None:
    """Quantize the linear layers of a loaded model but its head, one after the other.

    Args:
        model: a transformers model with plain weights.
        quantization: how.
    """
    library: Any = import_quietly("torchao.quantization" if quantization.type == "int8" else "bitsandbytes")
    for name, layer in list(_linear_layers(model)):
        if quantization.type == "int8":
            layer.requires_grad_(False)
            library.quantize_(layer, library.Int8WeightOnlyConfig(version=2))
        else:
            model.set_submodule(name, _in_4_bits(layer, quantization, library))


def _in_4_bits(layer: nn.Linear, quantization: Quantization, library: Any) -> nn.Module:
    with torch.device("meta"):
        made: Any = library.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            layer.bias is not None,
            compress_statistics=quantization.double,
            quant_type=quantization.type,
        )
    made.weight = library.nn.Params4bit(
        layer.weight.data,
        requires_grad=False,
        blocksize=quantization.block or _BLOCK,
        compress_statistics=quantization.double,
        quant_type=quantization.type,
        module=made,
    )
    made.bias = layer.bias
    made.requires_grad_(False)
    result: nn.Module = made.to(layer.weight.device)  # which quantizes
    return result


def finish_loading(model: Any, quantization: Quantization | None, device: str) -> None:
    """Have a quantized model compute as the recipe says and be an ordinary model to whoever saves or moves it.

    Args:
        model: with layers in 4 or 8 bits.
        quantization: how the recipe quantizes it; None where its files were quantized already.
        device: the strategy's, or ``auto``. On a processor without instructions for bf16, ``auto`` is float32.
    """
    name = "auto" if quantization is None else quantization.compute_dtype
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if name == "auto" and not on_gpu and not native_bf16():
        name = "fp32"
    use_plain_kernels(model, _DTYPES.get(name))
    mark_as_quantized(model)


def make_dense(model: nn.Module) -> None:
    """Replace layers in 4 and 8 bits by plain ones with the weights, in float32, that they compute with."""
    for name, layer in list(model.named_modules()):
        if not has_packed_weight(layer):
            continue
        held: Any = layer
        with torch.device("meta"):
            made = nn.Linear(held.in_features, held.out_features, bias=False)
        made.weight = nn.Parameter(unpacked(held.weight), requires_grad=False)
        if held.bias is not None:
            made.bias = nn.Parameter(held.bias.detach().float(), requires_grad=False)
        model.set_submodule(name, made.train(held.training))


def _linear_layers(model: Any) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the layers to quantize: all plain linear ones but the head and what shares a weight with another."""
    kept = {id(part) for part in (model.get_output_embeddings(), model.get_input_embeddings())}
    for name, module in model.named_modules():
        if type(module) is nn.Linear and id(module) not in kept:
            yield name, module


# --------------------------------------------------------------------------------------------------------- plans


class _PlannedLinear(nn.Linear):
    """A layer of a plan with parameters of the sizes of a quantized one's; it keeps no input for the backward pass."""

    def forward(self, input: Tensor) -> Tensor:
        made: Any = _Planned.apply(input, self.out_features)  # type: ignore[no-untyped-call]
        return made  # type: ignore[no-any-return]


class _Planned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, size: int) -> Tensor:
        ctx.shape = input.shape
        return input.new_empty(*input.shape[:-1], size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.new_empty(ctx.shape), None


def unpacked_numbers(model: nn.Module) -> int:
    """Return the weights of the largest quantized layer of a plan, which is unpacked while it computes."""
    layers = (layer for layer in model.modules() if isinstance(layer, _PlannedLinear))
    return max((layer.in_features * layer.out_features for layer in layers), default=0)


def plan_quantization(model: Any, quantization: Quantization) -> None:
    """Give a meta model layers of the sizes of quantized ones."""
    for name, layer in list(_linear_layers(model)):
        count = layer.weight.numel()
        made = _PlannedLinear(layer.in_features, layer.out_features, bias=False, dtype=layer.weight.dtype)
        made.bias = layer.bias
        if quantization.type == "int8":
            packed, scales = torch.empty(layer.weight.shape, dtype=torch.int8), torch.empty(layer.out_features, 1)
        else:
            packed = torch.empty((count + 1) // 2, 1, dtype=torch.uint8)
            blocks = -(-count // (quantization.block or _BLOCK))
            kind = torch.uint8 if quantization.double else torch.float32
            scales = torch.empty(blocks, dtype=kind)
            if quantization.double:
                made.nested = nn.Parameter(torch.empty(-(-blocks // _NESTED)), requires_grad=False)
        made.weight = nn.Parameter(packed, requires_grad=False)
        made.scales = nn.Parameter(scales, requires_grad=False)
        model.set_submodule(name, made)
