"""What a loss has to know about a model: what lies in its wrappers, whether it has an LM head, and what follows it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hooktrain import ModelError
from hooktrain_sft.loss.logit_transform import LogitTransform

__all__ = ["accepted", "innermost", "is_plain_linear", "is_sharded_linear", "logit_transform", "logits_of"]

logger = logging.getLogger(__name__)

_FEW = 8
"""Tokens on which our logits are compared with the model's own."""


def innermost(model: nn.Module) -> nn.Module:
    """The model itself: out of DDP and DeepSpeed (``module``), torch.compile and adapters."""
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        elif callable(base := getattr(model, "get_base_model", None)) and base() is not model:
            model = base()
        elif isinstance(inner := model._modules.get("module"), nn.Module) and (
            len(model._modules) == 1 or type(model).__module__.startswith("deepspeed")
        ):
            model = inner
        else:
            return model


def logit_transform(model: Any, batch: Mapping[str, Any]) -> LogitTransform | None:
    """What follows the LM head of a transformers model, found by comparing with its own logits for a few tokens.

    Args:
        model: the innermost model.
        batch: a micro-batch on the model's device.

    Returns:
        The transform, or None, with a warning, where the logits are not those of the LM head on the decoder's last
        hidden state, so that the model must be asked for them. Models that know nothing of transformers are not
        compared and not warned of.

    Raises:
        ModelError: the model is an encoder-decoder.
    """
    name = type(model).__name__
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ModelError(
            f"loss: {name} is an encoder-decoder, whose labels are not its input shifted by one; expected a"
            " decoder-only causal language model; give another model.name_or_path"
        )
    if not (callable(getattr(model, "get_decoder", None)) and callable(getattr(model, "get_output_embeddings", None))):
        return None
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    if not (isinstance(decoder, nn.Module) and isinstance(head, nn.Module)) or decoder is model:
        reason = "it has no decoder beside an LM head"
    else:
        try:
            own, raw = _compared(model, decoder, head, batch)
        except (AttributeError, TypeError) as problem:
            reason = f"it cannot be called without its LM head ({problem})"
        else:
            if raw is not None and raw.shape == own.shape:
                tolerance = 1e-3 if raw.dtype in (torch.float32, torch.float64) else 2e-2
                for transform in LogitTransform.candidates(model.config):
                    if _close(transform(raw.float()), own, tolerance):
                        return transform
            reason = "its logits are not those of its LM head on its last hidden state"
    logger.warning("%s: %s; computing all of its own logits, which takes more memory", name, reason)
    return None


def _compared(
    model: nn.Module, decoder: nn.Module, head: nn.Module, batch: Mapping[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """The model's logits for a few tokens, and what its head makes of the decoder's last hidden state."""
    shape = batch["input_ids"].shape
    few = {
        n: v[:1, :_FEW] for n, v in batch.items() if isinstance(v, Tensor) and v.shape == shape and "labels" not in n
    }
    hidden: list[Tensor] = []
    raw: list[Tensor] = []
    hooks = (
        decoder.register_forward_hook(lambda module, args, output: hidden.append(output.last_hidden_state)),
        # before the head is called, since that is when sharded weights are whole
        head.register_forward_pre_hook(lambda module, args: raw.extend(module.forward(seen) for seen in hidden)),
    )
    device = batch["input_ids"].device
    modes = {module: module.training for module in model.modules()}
    try:
        # the two would drop different values; and nothing may draw from the run's own random numbers
        model.eval()
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            own = logits_of(model(**accepted(model.forward, few)))
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    return own.float(), raw[0] if len(raw) == 1 else None


def _close(ours: Tensor, own: Tensor, tolerance: float) -> bool:
    return bool((ours - own).abs().max() <= tolerance * own.abs().max())


def is_plain_linear(head: nn.Module) -> bool:
    """Whether the head is its weight and nothing else, and the weight is all there."""
    weight = getattr(head, "weight", None)
    return (
        type(head) is nn.Linear
        and not isinstance(weight, DTensor)
        and not hasattr(weight, "ds_id")  # DeepSpeed ZeRO-3 gathers it when the module is called
        and not (head._forward_hooks or head._forward_pre_hooks)
    )


def is_sharded_linear(head: nn.Module) -> bool:
    """Whether the head is its weight and nothing else once it is called: only DeepSpeed hooks into it, to gather it."""
    hooks = [*head._forward_hooks.values(), *head._forward_pre_hooks.values()]
    return (
        type(head) is nn.Linear
        and hasattr(head.weight, "ds_id")
        and all(str(getattr(hook, "__module__", "")).startswith("deepspeed.") for hook in hooks)
    )


def accepted(forward: Callable[..., Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that a model's ``forward`` has parameters for; ``use_cache: False`` if it has one for that."""
    parameters = inspect.signature(forward).parameters
    cache = {"use_cache": False} if "use_cache" in parameters else {}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return {**inputs, **cache}
    return {name: value for name, value in inputs.items() if name in parameters} | cache


def logits_of(output: Any) -> Tensor:
    """The logits of what a model returned, shape (rows, tokens, vocabulary)."""
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if found is None and isinstance(output, Mapping):
        found = output.get("logits")
    if found is None and isinstance(output, tuple) and output:
        found = output[0]
    if not isinstance(found, Tensor):
        raise ModelError(
            f"loss: the model returned a {type(output).__name__}, expected logits of shape (rows, tokens, vocabulary)"
            " or an output with .logits; change the model or select another loss"
        )
    return found
