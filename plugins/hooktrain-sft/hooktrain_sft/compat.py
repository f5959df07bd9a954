"""Optional and private attributes of the libraries that this plugin works with, each behind a function.

Seen to work with torch 2.13.0, transformers 5.23.0, tokenizers 0.23.3, Jinja2 3.1.6, datasets 5.2.0, DeepSpeed 0.19.8
and PEFT 0.21.2. ``tests/plugins/sft/test_compat.py`` fails when an upgrade breaks one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from torch import Tensor
    from torch.nn import Module

__all__ = [
    "GENERATION_BLOCK",
    "attention_implementation",
    "auxiliary_loss",
    "bidirectional_settings",
    "chat_template_environment",
    "column_names",
    "config_values",
    "decoder_and_head",
    "decoder_of",
    "forward_hooks",
    "has_adapter",
    "has_dropout",
    "head_weight",
    "input_embeddings",
    "is_deepspeed_function",
    "is_encoder_decoder",
    "is_fast_tokenizer",
    "is_table",
    "is_zero3_parameter",
    "keeps_graph",
    "logit_settings",
    "model_max_length",
    "noise_settings",
    "output_logits",
    "output_size",
    "router_loss_coefficient",
    "special_token_ids",
    "unwrapped_once",
    "vocabulary_size",
]

# ------------------------------------------------------------------------------------------------- chat templates

GENERATION_BLOCK = "_generation_support"
"""Name of the method that transformers' Jinja extension calls for ``{% generation %}``."""


def chat_template_environment(source: str) -> ImmutableSandboxedEnvironment:
    """Return the sandboxed environment in which transformers renders a chat template.

    The sandbox's answers for attributes of ``loop`` are remembered, as they depend on nothing but the name: asking
    again took an eighth of the time in which conversations are rendered.
    """
    from jinja2.runtime import LoopContext
    from transformers.utils.chat_template_utils import _compile_jinja_template

    environment: ImmutableSandboxedEnvironment = _compile_jinja_template(source).environment.overlay()
    ask, known = environment.is_safe_attribute, dict[str, bool]()

    def is_safe_attribute(obj: Any, attr: str, value: Any) -> bool:
        if type(obj) is not LoopContext:
            return bool(ask(obj, attr, value))
        if attr not in known:
            known[attr] = bool(ask(obj, attr, value))
        return known[attr]

    vars(environment)["is_safe_attribute"] = is_safe_attribute
    return environment


# ----------------------------------------------------------------------------------------------------- tokenizers


def is_fast_tokenizer(tokenizer: Any) -> bool:
    """Return whether a tokenizer is backed by the tokenizers library."""
    return bool(getattr(tokenizer, "is_fast", False))


def model_max_length(tokenizer: Any) -> int:
    """Return the longest sequence that a tokenizer's model takes; 0, or a huge number, where it is not known."""
    return int(getattr(tokenizer, "model_max_length", None) or 0)


def special_token_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids of a tokenizer's special tokens."""
    return frozenset(getattr(tokenizer, "all_special_ids", ()))


# ------------------------------------------------------------------------------------------------------- datasets


def is_table(examples: Any) -> bool:
    """Return whether examples are a ``datasets.Dataset``, which is read fastest in blocks."""
    return hasattr(examples, "iter") and hasattr(examples, "features") and hasattr(examples, "__len__")


def column_names(examples: Any) -> Sequence[str] | None:
    """Return the columns of a data set that knows them."""
    return getattr(examples, "column_names", None)


# --------------------------------------------------------------------------------------------------------- models


def unwrapped_once(model: Module) -> Module | None:
    """Return the module inside torch.compile, a PEFT adapter, DDP or DeepSpeed; None for a model without a wrapper."""
    from torch import nn

    if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
        return inner
    if callable(base := getattr(model, "get_base_model", None)) and (inner := base()) is not model:
        return inner
    inner, children = model._modules.get("module"), len(model._modules)
    return inner if children == 1 or type(model).__module__.startswith("deepspeed") else None


def _text_config(model: Any) -> Any:
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def vocabulary_size(of: Any) -> int | None:
    """Return the vocabulary size of a transformers model or tokenizer; None where it has none."""
    return getattr(_text_config(of), "vocab_size", None) or getattr(of, "vocab_size", None)


def attention_implementation(model: Any) -> str | None:
    """Return the attention implementation that a transformers model was loaded with."""
    return getattr(getattr(model, "config", None), "_attn_implementation", None)


def is_encoder_decoder(model: Any) -> bool:
    """Return whether a transformers model has an encoder and a decoder."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def has_adapter(model: Any) -> bool:
    """Return whether PEFT has wrapped a model."""
    return callable(getattr(model, "get_base_model", None))


def config_values(model: Any) -> dict[str, Any]:
    """Return the values of a transformers model's config but for where it comes from; nothing for other models."""
    config: Any = getattr(model, "config", None)
    values: dict[str, Any] = config.to_dict() if hasattr(config, "to_dict") else {}
    return {name: value for name, value in values.items() if name not in ("_name_or_path", "transformers_version")}


def has_dropout(model: Module) -> bool:
    """Return whether a model drops anything while it is trained, by its modules or by its config."""
    from torch import nn

    config = vars(_text_config(model) or object) if hasattr(model, "config") else {}
    values = [value for name, value in config.items() if "drop" in name]
    values += [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    return any(isinstance(value, float) and value > 0 for value in values)


def noise_settings(model: Any) -> list[str]:
    """Return the settings of a transformers config that make a router's choice random in training."""
    config = vars(_text_config(model))
    return [name for name, value in config.items() if name.endswith("jitter_noise") and value]


def bidirectional_settings(model: Any) -> dict[str, str]:
    """Return the settings of a transformers config that let tokens see later ones, each with the value to write."""
    causal = {"is_decoder": True, "is_causal": True, "causal": True, "use_bidirectional_attention": False}
    text = _text_config(model)
    found = {name: getattr(text, name, None) for name in causal}
    wrong = {name for name, value in found.items() if value is not None and bool(value) is not causal[name]}
    return {name: str(causal[name]).lower() for name in causal if name in wrong}


def input_embeddings(model: Any) -> Module | None:
    """Return the token embedding of a transformers model; None for other models."""
    get: Callable[[], Module | None] | None = getattr(model, "get_input_embeddings", None)
    return get() if callable(get) else None


def decoder_and_head(model: Any) -> tuple[Module | None, Module | None] | None:
    """Return the decoder and the LM head of a transformers model; None for models without these methods."""
    decoder, head = getattr(model, "get_decoder", None), getattr(model, "get_output_embeddings", None)
    return (decoder(), head()) if callable(decoder) and callable(head) else None


def decoder_of(model: Any) -> Module:
    """Return the part of a model that its LM head follows; the model itself where none can be told apart."""
    get = getattr(model, "get_decoder", None)
    found = get() if callable(get) else None
    if not hasattr(found, "config"):  # a model's own ``decoder`` may also be a layer of its head
        found = getattr(model, "base_model", None)
    from torch import nn

    return found if isinstance(found, nn.Module) else model


def head_weight(model: Any) -> Tensor | None:
    """Return the weight of a transformers model's LM head; None where there is none."""
    get = getattr(model, "get_output_embeddings", None)
    return getattr(get(), "weight", None) if callable(get) else None


def output_size(head: Module, model: Any) -> int:
    """Return the number of logits of an LM head, from its model's config where the head does not know it."""
    return int(getattr(head, "out_features", None) or vocabulary_size(model) or 0)


def logit_settings(model: Any) -> tuple[float, float, float | None]:
    """Return the factor, the divisor and the soft cap that a transformers model's config has for its logits.

    Cohere calls the factor ``logit_scale`` and Falcon-H1 ``lm_head_multiplier``. Granite divides by
    ``logits_scaling``, HyperCLOVA X multiplies with it.
    """
    text = _text_config(model)
    scale, head = (getattr(text, name, None) or 1.0 for name in ("logit_scale", "lm_head_multiplier"))
    divisor = getattr(text, "logits_scaling", None) or 1.0
    cap = getattr(text, "final_logit_softcapping", None)
    return float(scale) * float(head), float(divisor), float(cap) if cap else None


def router_loss_coefficient(model: Any) -> float | None:
    """Return the factor of a mixture of experts' auxiliary loss; None where the config does not ask for the loss."""
    configs = (getattr(model, "config", None), _text_config(model))
    if not any(getattr(config, "output_router_logits", False) for config in configs):
        return None
    return float(getattr(configs[1], "router_aux_loss_coef", 0.0))


def auxiliary_loss(output: Any) -> Tensor | None:
    """Return the auxiliary loss in a model's output."""
    return getattr(output, "aux_loss", None)


def output_logits(output: Any) -> Tensor | None:
    """Return the logits in a transformers model's output."""
    return getattr(output, "logits", None)


# ------------------------------------------------------------------------------------------------ torch, DeepSpeed


def forward_hooks(module: Module) -> list[Callable[..., Any]]:
    """Return the functions that run before and after a module's forward."""
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


def is_deepspeed_function(function: Callable[..., Any]) -> bool:
    """Return whether a function is DeepSpeed's own."""
    return str(getattr(function, "__module__", "")).startswith("deepspeed.")


def is_zero3_parameter(parameter: Tensor) -> bool:
    """Return whether DeepSpeed ZeRO-3 shards a parameter and gathers it when its module is called."""
    return hasattr(parameter, "ds_id")


def keeps_graph() -> bool:
    """Return whether the running backward pass keeps its graph for another one; True where torch does not tell."""
    import torch

    function = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if function is None else bool(function())
