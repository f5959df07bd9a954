"""Access to what transformers, torch, PEFT and DeepSpeed have without a promise that it stays.

Seen to work with transformers 5.23, torch 2.13, PEFT 0.21, DeepSpeed 0.19, accelerate 1.15, gguf 0.19,
bitsandbytes 0.50 and torchao 0.18.
``tests/plugins/hf/test_compat.py`` fails where an upgrade breaks a function of this module.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "attention_implementation",
    "auto_class",
    "chat_template",
    "checkpointed_blocks",
    "compile_counters",
    "complete_shape",
    "complete_weights",
    "config_dtype",
    "counts_positions",
    "decoder_of",
    "devices_of",
    "eager_attention",
    "enable_activation_checkpointing",
    "forget_gguf_quantization",
    "fused_attention",
    "fused_attention_backward",
    "gguf_load_options",
    "has_packed_weight",
    "has_vision",
    "is_cache",
    "is_stateful",
    "layer_types",
    "mark_as_quantized",
    "mark_padding",
    "model_class",
    "names_not_saved",
    "native_bf16",
    "operators_named",
    "position_limit",
    "recompute_block",
    "recording_in_operator",
    "set_attention_implementation",
    "softmax_backward",
    "stored_file",
    "supports_attention_interface",
    "unpacked",
    "unwrap_adapters",
    "use_plain_kernels",
    "vocabulary_size",
    "works_without_masks",
]


# ------------------------------------------------------------------------------------------------ parts of a model


def unwrap_adapters(model: Any) -> Any:
    """Return the model inside PEFT's wrappers; any other model itself."""
    while callable(base := getattr(model, "get_base_model", None)) and (inner := base()) is not model:
        model = inner
    return model


def decoder_of(model: Any) -> Any:
    """Return the part whose forward the LM head follows; a model's own ``decoder`` may also be a layer of its head."""
    get = getattr(model, "get_decoder", None)
    found = get() if callable(get) else None
    if not hasattr(found, "config"):
        found = getattr(model, "base_model", None)
    return found if isinstance(found, nn.Module) else model


def layer_types(decoder: Any) -> Sequence[str]:
    """Return the kinds of a decoder's layers as its config lists them; nothing where it does not."""
    return getattr(getattr(decoder, "config", None), "layer_types", None) or ()


def is_stateful(decoder: Any) -> bool:
    """Return whether a model declares that it carries a state from token to token."""
    return bool(getattr(type(decoder), "_is_stateful", False))


def counts_positions(module: Any) -> bool:
    """Return whether a module, or a class of modules, embeds positions and counts those that it is not given.

    They count past their padding token, as RoBERTa does.
    """
    counts = callable(getattr(module, "create_position_ids_from_input_ids", None))
    return counts and "position_ids" in inspect.signature(module.forward).parameters


def position_limit(config: Any) -> int | None:
    """Return the size of the table of positions of a transformers config; None for one with rotary embeddings."""
    text = config.get_text_config(decoder=True)
    if getattr(text, "rope_parameters", None):
        return None
    names = ("max_position_embeddings", "max_target_positions", "max_seq_len")  # Whisper and MPT have the last two
    found = next((size for name in names if isinstance(size := getattr(text, name, None), int)), 0)
    return found if found > 0 else None


def has_vision(config: Any) -> bool:
    """Return whether a transformers config is that of a model of images and text."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def auto_class(config: Any, classifier: bool = False) -> Any:
    """Return the factory of transformers that makes a complete model of a config; None where it has none for text.

    Args:
        config: of the model.
        classifier: whether it gets a head of labels in the place of an LM head.
    """
    import transformers
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    )

    if classifier:
        known = type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
        return transformers.AutoModelForSequenceClassification if known else None
    if has_vision(config):
        return transformers.AutoModelForImageTextToText
    own = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    return transformers.AutoModelForCausalLM if own or type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else None


def mark_padding(model: Any, tokenizer: Any) -> None:
    """Name the tokenizer's padding token, or its end of sequence, in a classifier's config.

    A classifier reads its labels off the last token that is not this one.
    """
    found = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    model.config.get_text_config().pad_token_id = found


def config_dtype(config: Any) -> str:
    """Return the dtype in which a model is stored, such as ``bfloat16``; empty where its config does not say."""
    found = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    return str(found or "").removeprefix("torch.")


def model_class(config: Any) -> type | None:
    """Return the class of transformers that a config's model has; None for a model of others."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )

    mapping: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if has_vision(config) else MODEL_FOR_CAUSAL_LM_MAPPING
    kind: type | None = mapping.get(type(config), None)
    return kind


def stored_file(name_or_path: str, name: str) -> str | None:
    """Return the path of a model's file on this machine; None where it has no such file."""
    from transformers.utils.hub import cached_file

    try:
        found: str | None = cached_file(name_or_path, name, local_files_only=True)
    except OSError:
        return None
    return found


def vocabulary_size(model: Any) -> int | None:
    """Return how many tokens a model embeds; None where its config does not say."""
    size: int | None = getattr(model.config.get_text_config(), "vocab_size", None)
    return size


def devices_of(model: Any) -> set[Any]:
    """Return the devices over which ``device_map`` has divided a model; empty without one."""
    return set((getattr(model, "hf_device_map", None) or {}).values())


def names_not_saved(model: Any) -> Iterable[str]:
    """Return the names of weights that a model does not save."""
    return getattr(model, "_keys_to_ignore_on_save", None) or ()


def enable_activation_checkpointing(model: Any) -> None:
    """Have a transformers model recompute activations in the backward pass."""
    # transformers 5 renamed it; both take their argument by position
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})  # the other kind gives no gradients over a frozen embedding, as under LoRA


def checkpointed_blocks(model: nn.Module) -> list[tuple[nn.Module, Any]]:
    """Return the blocks that can recompute their activations, each with the function that has them do so, or None."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    found = (module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))
    return [(block, vars(block).get("_gradient_checkpointing_func")) for block in found]


def recompute_block(block: Any, function: Callable[..., Any] | None) -> None:
    """Have one of :func:`checkpointed_blocks` recompute its activations by a function; None has it keep them."""
    block.gradient_checkpointing, block._gradient_checkpointing_func = function is not None, function


def operators_named(name: str) -> list[Any]:
    """Return the overloads of one of torch's operators: ``mm``, or ``library::name``; empty where there is none."""
    library, _, operator = name.rpartition("::")
    packet = getattr(getattr(torch.ops, library or "aten"), operator, None)
    return [] if packet is None else [getattr(packet, overload) for overload in packet.overloads()]


def compile_counters() -> tuple[int, dict[str, int]]:
    """Return how many graphs torch.compile has made in this process, and why it has broken graphs off, with counts."""
    counters: Any = importlib.import_module("torch._dynamo.utils").counters
    return int(counters["stats"]["unique_graphs"]), dict(counters["graph_break"])


# ------------------------------------------------------------------------------------------------------- attention


def attention_implementation(module: Any) -> str:
    """Return the name of the attention that a transformers module uses; empty where it has none."""
    return str(getattr(getattr(module, "config", None), "_attn_implementation", None) or "")


def set_attention_implementation(module: Any, name: str) -> None:
    """Set the attention of a transformers module without the checks of its own setter."""
    module.config._attn_implementation = name


def supports_attention_interface(decoder: Any) -> bool:
    """Return whether a model looks its attention function up by name."""
    return bool(getattr(type(decoder), "_supports_attention_backend", False))


def works_without_masks(decoder: Any) -> bool:
    """Return whether a model's attention needs no mask besides its arguments, as for flash kernels."""
    return bool(getattr(type(decoder), "_supports_flash_attn", False))


def eager_attention(module: Any) -> Callable[..., Any] | None:
    """Return the eager attention function in the source of a module's class; None where there is none."""
    return getattr(sys.modules.get(type(module).__module__), "eager_attention_forward", None)


def softmax_backward(gradient: Tensor, output: Tensor) -> Tensor:
    """Return the gradient of a softmax's input over the last dimension, from its output's; all of one shape."""
    return torch._softmax_backward_data(gradient, output, -1, output.dtype)


def is_cache(value: Any) -> bool:
    """Return whether a value is transformers' cache of keys and values."""
    from transformers import Cache

    return isinstance(value, Cache)


def fused_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Call torch's causal kernel for the processor on (documents, heads, tokens, channels); logarithms come second."""
    kernel: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    made: tuple[Tensor, Tensor] = kernel(query, key, value, 0.0, True, scale=scale)
    return made


def fused_attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, made: Tensor, logs: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values of :func:`fused_attention`."""
    kernel: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    found: tuple[Tensor, Tensor, Tensor] = kernel(gradient, query, key, value, made, logs, 0.0, True, scale=scale)
    return found


@contextmanager
def recording_in_operator() -> Iterator[None]:
    """Let autograd record inside an operator of ``torch.library``, which runs below it."""
    library: Any = torch._C
    keys = [library.DispatchKey.AutogradFunctionality, library.DispatchKey.AutogradOther]
    before = [library._dispatch_tls_is_dispatch_key_excluded(key) for key in keys]
    for key in keys:
        library._dispatch_tls_set_dispatch_key_excluded(key, False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for key, excluded in zip(keys, before, strict=True):
            library._dispatch_tls_set_dispatch_key_excluded(key, excluded)


def native_bf16() -> bool:
    """Return whether this processor multiplies bf16 natively."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


# ------------------------------------------------------------------------------------------- tokenizers, GGUF, shards


def chat_template(tokenizer: Any) -> Any:
    """Return a tokenizer's chat template; None where it has none."""
    return getattr(tokenizer, "chat_template", None)


def gguf_load_options() -> dict[str, Any]:
    """Return what ``from_pretrained`` needs to unpack GGUF weights: transformers 5 keeps them packed by default."""
    import transformers

    if not hasattr(transformers, "GgufConfig"):
        return {}
    return {"quantization_config": transformers.GgufConfig(dequantize=True)}


def forget_gguf_quantization(model: Any) -> None:
    """Remove what marks an unpacked GGUF model as quantized, as transformers refuses to save quantized ones."""
    quantizer = getattr(model, "hf_quantizer", None)
    method = getattr(getattr(quantizer, "quantization_config", None), "quant_method", None)
    if getattr(method, "value", method) != "gguf":
        return
    del model.hf_quantizer
    for name, value in (("is_quantized", False), ("quantization_method", None)):
        if hasattr(model, name):
            setattr(model, name, value)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def complete_shape(parameter: Tensor) -> tuple[int, ...]:
    """Return the shape of a weight, also where this rank holds a shard of it under ZeRO-3."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


@contextmanager
def complete_weights(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Gather weights inside the block where ZeRO-3 shards them; what the main rank changes reaches all ranks."""
    if not any(hasattr(weight, "ds_id") for weight in weights):
        yield
        return
    zero = importlib.import_module("deepspeed.zero")
    with zero.GatheredParameters(list(weights), modifier_rank=0):
        yield


# ---------------------------------------------------------------------------------------------------- quantized layers


def _classes(package: str, *names: str) -> tuple[type, ...]:
    """Return classes of a package, or none where nothing has imported it, so that no object can be of one."""
    module: Any = sys.modules.get(package)
    return () if module is None else tuple(getattr(module, name) for name in names)


def has_packed_weight(module: nn.Module) -> bool:
    """Return whether a module is a linear layer in 4 bits of bitsandbytes' or in 8 bits of torchao's."""
    if isinstance(module, _classes("bitsandbytes.nn", "Linear4bit")):
        return True
    return type(module) is nn.Linear and isinstance(module.weight, _classes("torchao.quantization", "Int8Tensor"))


def unpacked(weight: Any) -> Tensor:
    """Return the dense weight that a packed one stands for, not rounded to the type that it was quantized from."""
    in_4_bits = isinstance(weight, _classes("bitsandbytes.nn", "Params4bit"))
    if in_4_bits:
        functional: Any = importlib.import_module("bitsandbytes.functional")
        state = copy.copy(weight.quant_state)
        state.dtype = torch.float32
        made: Tensor = functional.dequantize_4bit(weight.data, state)
        return made
    dense: Tensor = weight.qdata.float() * weight.scale.float()
    return dense


def use_plain_kernels(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Set the type that layers in 4 bits compute in, and keep them from repacking their weights.

    On a processor with bf16 instructions, bitsandbytes packs weights anew in evaluation and computes in bf16 from then
    on, which the weights of a checkpoint and the loss of a float32 run would show.

    Args:
        model: has the layers.
        dtype: None for the type of a layer's inputs.
    """
    for module in model.modules():
        if isinstance(module, _classes("bitsandbytes.nn", "Linear4bit")):
            layer: Any = module
            layer.support_avx512bf16_for_cpu = False
            layer.compute_dtype, layer.compute_type_is_set = dtype, dtype is not None


def mark_as_quantized(model: Any) -> None:
    """Tell PEFT that layers are in 4 bits, and remove what transformers refuses to move or save a model for."""
    four_bits = _classes("bitsandbytes.nn", "Linear4bit")
    model.is_loaded_in_4bit = any(isinstance(module, four_bits) for module in model.modules())
    _forget_quantizer(model)


def _forget_quantizer(model: Any) -> None:
    for name in ("hf_quantizer", "quantization_method"):
        if name in vars(model):
            delattr(model, name)
    if hasattr(model, "is_quantized"):
        model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
