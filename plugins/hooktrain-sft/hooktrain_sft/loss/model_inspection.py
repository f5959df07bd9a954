"""Inspection of a model: the module inside its wrappers, its LM head, and the transform of its logits."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hooktrain import ModelError
from hooktrain_sft.compat import (
    decoder_and_head,
    forward_hooks,
    is_deepspeed_function,
    is_encoder_decoder,
    is_zero3_parameter,
    output_logits,
    unwrapped_once,
)
from hooktrain_sft.loss.logit_transform import LogitTransform

__all__ = ["accepted", "innermost", "is_plain_linear", "is_sharded_linear", "logit_transform", "logits_of"]

logger = logging.getLogger(__name__)

_FEW = 8
"""Tokens on which the logits are compared with the model's own."""


def innermost(model: nn.Module) -> nn.Module:
    """Return the model inside all of its wrappers: DDP, DeepSpeed, torch.compile and adapters."""
    while (inner := unwrapped_once(model)) is not None:
        model = inner
    return model


def logit_transform(model: Any, batch: Mapping[str, Any]) -> LogitTransform | None:
    """Find the transform of a transformers model's logits by comparing with its own logits for a few tokens.

    Args:
        model: the innermost model.
        batch: a micro-batch on the model's device.

    Returns:
        The transform. None, with a warning, where the logits are not those of the LM head on the decoder's last hidden
        state, so that the model has to compute them. None without a warning for models that are not transformers'.

    Raises:
        ModelError: the model is an encoder-decoder.
    """
    name = type(model).__name__
    if is_encoder_decoder(model):
        raise ModelError(
            f"loss: {name} is an encoder-decoder, whose labels are not its input shifted by one; expected a"
            " decoder-only causal language model; give another model.name_or_path"
        )
    parts = decoder_and_head(model)
    if parts is None:
        return None
    decoder, head = parts
    if decoder is None or head is None or decoder is model:
        reason = "it has no decoder that is separate from an LM head"
    else:
        try:
            own, raw = _compared(model, decoder, head, batch)
        except (AttributeError, LookupError, TypeError, RuntimeError, ValueError) as problem:
            reason = f"it cannot be called without its LM head ({str(problem).splitlines()[0] if str(problem) else ''})"
        else:
            if raw is not None and raw.shape == own.shape:
                relative = 1e-3 if raw.dtype in (torch.float32, torch.float64) else 2e-2
                for transform in LogitTransform.candidates(model):
                    if _close(transform(raw.float()), own, relative):
                        return transform
            reason = "its logits are not those of its LM head on its last hidden state"
    logger.warning("%s: %s; computing all of its own logits, which takes more memory", name, reason)
    return None


def _compared(
    model: nn.Module, decoder: nn.Module, head: nn.Module, batch: Mapping[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """Return the model's logits for a few tokens, and its head's output on the decoder's last hidden state."""
    shape = batch["input_ids"].shape
    few = {
        n: v[:1, :_FEW] for n, v in batch.items() if isinstance(v, Tensor) and v.shape == shape and "labels" not in n
    }
    hidden: list[Tensor] = []
    raw: list[Tensor] = []
    hooks = (
        decoder.register_forward_hook(lambda module, args, output: hidden.append(output.last_hidden_state)),
        # before the head is called, since sharded weights are gathered then
        head.register_forward_pre_hook(lambda module, args: raw.extend(module.forward(seen) for seen in hidden)),
    )
    device = batch["input_ids"].device
    modes = {module: module.training for module in model.modules()}
    try:
        # dropout would differ between the two, and the run's own random numbers must not be used up
        model.eval()
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            own = logits_of(model(**accepted(model.forward, few)))
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    return own.float(), raw[0] if len(raw) == 1 else None


def _close(ours: Tensor, own: Tensor, relative: float) -> bool:
    return bool((ours - own).abs().max() <= relative * own.abs().max())


def is_plain_linear(head: nn.Module) -> bool:
    """Return whether a head is a linear layer without hooks whose weight is complete on this rank."""
    if type(head) is not nn.Linear or forward_hooks(head):
        return False
    return not isinstance(head.weight, DTensor) and not is_zero3_parameter(head.weight)


def is_sharded_linear(head: nn.Module) -> bool:
    """Return whether a head is a linear layer whose only hooks are DeepSpeed's, which gather its weight for a call."""
    if type(head) is not nn.Linear or not is_zero3_parameter(head.weight):
        return False
    return all(map(is_deepspeed_function, forward_hooks(head)))


def accepted(forward: Callable[..., Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs that ``forward`` has parameters for, and ``use_cache: False`` if it has that parameter."""
    parameters = inspect.signature(forward).parameters
    cache = {"use_cache": False} if "use_cache" in parameters else {}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return {**inputs, **cache}
    return {name: value for name, value in inputs.items() if name in parameters} | cache


def logits_of(output: Any) -> Tensor:
    """Return the logits in a model's output, shape (sequences, tokens, vocabulary)."""
    found = output if isinstance(output, Tensor) else output_logits(output)
    if found is None and isinstance(output, Mapping):
        found = output.get("logits")
    if found is None and isinstance(output, tuple) and output:
        found = output[0]
    if not isinstance(found, Tensor):
        raise ModelError(
            f"loss: the model returned a {type(output).__name__}, expected logits of shape (sequences, tokens,"
            " vocabulary) or an output with .logits; change the model or select another loss"
        )
    return found
