"""The ``sft`` loss: next-token cross-entropy in which only supervised positions meet the LM head."""

from __future__ import annotations

import inspect
import logging
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from hooktrain import LossSum, ModelError
from hooktrain_sft.config import SFTLossConfig
from hooktrain_sft.linear_loss import IGNORE_INDEX, LogitTransform, cross_entropy_sum, linear_cross_entropy

__all__ = ["SFTLoss", "supervised_positions"]

logger = logging.getLogger(__name__)

_PROBE = 8
"""Tokens on which our logits are compared with the model's own."""


class SFTLoss:
    """``loss(model, batch, weight)``: the sum over supervised tokens.

    A transformers model is called through whatever wraps it (DDP, DeepSpeed, adapters), so that their hooks run, but
    for the time of the call its ``forward`` is one that stops before the LM head, picks the supervised positions, and
    returns their loss. Any other model is called as it is, and must return logits.
    """

    def __init__(self, config: SFTLossConfig) -> None:
        self._config = config
        self._heads: weakref.WeakKeyDictionary[nn.Module, _HeadedForward | None] = weakref.WeakKeyDictionary()

    def __call__(self, model: nn.Module, batch: Mapping[str, Any], weight: int) -> LossSum:
        """Run the model on a micro-batch.

        Args:
            model: the model, wrapped or not.
            batch: ``input_ids``, ``labels`` (not shifted, -100 for no loss) and what else the model takes, shape
                (rows, tokens), on the model's device.
            weight: how many labels are supervised, the first of each row not counted; known to the host, so that
                nothing here waits for the device.

        Returns:
            The sum of the loss; zero, with a graph, when ``weight`` is 0.
        """
        bare = _bare(model)
        if bare not in self._heads:
            self._heads[bare] = _HeadedForward(bare, self._config.chunk_size) if _has_head(bare) else None
        headed = self._heads[bare]
        if headed is None:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            logits = _logits(model(**_accepted(bare, inputs)))
            return LossSum(_logits_loss(logits, batch["labels"], weight), weight)
        with headed.swapped_in():
            return LossSum(model(**batch, supervised_tokens=weight), weight)


class _HeadedForward:
    """A ``forward`` for transformers models that returns the loss."""

    def __init__(self, model: nn.Module, chunk_size: int) -> None:
        self._model = weakref.ref(model)
        self._chunk_size = chunk_size
        self._transform = LogitTransform.of(model.config)
        self._flatten = "flash" in str(getattr(model.config, "_attn_implementation", ""))
        self._uses_head: bool | None = None

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Let the model's ``forward`` be this one."""
        model = self._model()
        assert model is not None
        before = model.__dict__.get("forward")
        self._own = model.forward
        model.forward = self.forward
        try:
            yield
        finally:
            del model.forward, self._own
            if before is not None:
                model.forward = before

    def forward(self, *, labels: Tensor, supervised_tokens: int, **inputs: Any) -> Tensor:
        model: Any = self._model()
        inputs = {name: value for name, value in inputs.items() if value is not None}  # adapters pass every default on
        if self._flatten and inputs.get("attention_mask") is None and "position_ids" in inputs:
            # flash attention looks for restarting positions only where there is a single row
            inputs = {name: _one_row(value, labels) for name, value in inputs.items()}
        if self._uses_head is None:
            self._uses_head = self._agrees(model, inputs)
        inputs["use_cache"] = False
        if not self._uses_head:
            return _logits_loss(self._own(**inputs).logits.view(*labels.shape, -1), labels, supervised_tokens)
        hidden = model.get_decoder()(**inputs).last_hidden_state  # (rows, tokens, hidden)
        head = model.get_output_embeddings()
        hidden = hidden.reshape(-1, hidden.shape[-1])  # (rows * tokens, hidden)
        if supervised_tokens == 0:
            # on the other ranks all parameters have gradients, so here they must too
            return _zero(self._transform(head(hidden[:1])))
        positions, targets = supervised_positions(labels, supervised_tokens)
        hidden = hidden.index_select(0, positions)  # (supervised, hidden)
        if _is_plain_linear(head):
            return linear_cross_entropy(hidden, head.weight, head.bias, targets, self._transform, self._chunk_size)
        return self._checkpointed(head, hidden, targets)

    def _checkpointed(self, head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
        """For heads that must be called, as adapters or sharded weights need it: logits are computed twice."""

        def chunk_loss(chunk: Tensor, goal: Tensor) -> Tensor:
            return cross_entropy_sum(self._transform(head(chunk)), goal)

        sums = [
            checkpoint(chunk_loss, chunk, goal, use_reentrant=False)
            for chunk, goal in zip(
                torch.split(hidden, self._chunk_size), torch.split(targets, self._chunk_size), strict=True
            )
        ]
        return torch.stack(sums).sum()

    def _agrees(self, model: Any, inputs: Mapping[str, Any]) -> bool:
        """Whether decoder, head and transform give the model's own logits, asked once for a few tokens."""
        few = {n: v[:1, :_PROBE] if isinstance(v, Tensor) and v.dim() == 2 else v for n, v in inputs.items()}
        seen: list[Tensor] = []
        decoder = model.get_decoder()
        hook = decoder.register_forward_hook(lambda module, args, output: seen.append(output.last_hidden_state))
        device = few["input_ids"].device
        try:
            # dropout must not draw from the run's own random numbers
            with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
                own = self._own(**few, use_cache=False).logits.float()
                ours = self._transform(model.get_output_embeddings()(seen[0])).float() if len(seen) == 1 else None
        except (AttributeError, TypeError) as problem:
            name = type(model).__name__
            logger.warning("%s: not callable without its LM head (%s); using its own logits", name, problem)
            return False
        finally:
            hook.remove()
        exact = model.get_output_embeddings().weight.dtype in (torch.float32, torch.float64)
        tolerance = 1e-3 if exact and not torch.is_autocast_enabled(device.type) else 2e-2
        if ours is not None and ours.shape == own.shape and (ours - own).abs().max() <= tolerance * own.abs().max():
            return True
        logger.warning(
            "%s: its logits are not those of its LM head on its last hidden state; computing all of its own logits,"
            " which takes more memory",
            type(model).__name__,
        )
        return False


def supervised_positions(labels: Tensor, weight: int) -> tuple[Tensor, Tensor]:
    """Where the supervised tokens are predicted, and what they are, without waiting for the device.

    Args:
        labels: not shifted, -100 for no loss, shape (rows, tokens).
        weight: how many are supervised, the first of each row not counted.

    Returns:
        Indices into the flattened positions, and the token to be predicted there; both of shape (weight,). Where there
        are fewer than ``weight``, the rest has no target.
    """
    shifted = torch.full_like(labels, IGNORE_INDEX)
    shifted[:, :-1] = labels[:, 1:]
    flat = shifted.reshape(-1)
    # nonzero() would wait to learn how many there are; the last position never predicts anything, so it can fill up
    positions = torch.nonzero_static(flat != IGNORE_INDEX, size=weight, fill_value=len(flat) - 1)[:, 0]
    return positions, flat.index_select(0, positions)


def _logits_loss(logits: Tensor, labels: Tensor, weight: int) -> Tensor:
    """The loss from logits of shape (rows, tokens, vocabulary)."""
    if weight == 0:
        return _zero(logits)
    positions, targets = supervised_positions(labels, weight)
    return cross_entropy_sum(logits.reshape(-1, logits.shape[-1]).index_select(0, positions), targets)


def _zero(values: Tensor) -> Tensor:
    return values.float().sum() * 0.0


def _bare(model: nn.Module) -> nn.Module:
    """The innermost model: out of DDP and DeepSpeed (``module``), torch.compile and adapters."""
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


def _has_head(model: Any) -> bool:
    """Whether this is a transformers decoder with an LM head on top."""
    if not (callable(getattr(model, "get_decoder", None)) and callable(getattr(model, "get_output_embeddings", None))):
        return False
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    return isinstance(decoder, nn.Module) and isinstance(head, nn.Module) and decoder is not model


def _is_plain_linear(head: nn.Module) -> bool:
    """Whether the head is its weight and nothing else, and the weight is all there."""
    weight = getattr(head, "weight", None)
    return (
        type(head) is nn.Linear
        and not isinstance(weight, DTensor)
        and not hasattr(weight, "ds_id")  # DeepSpeed ZeRO-3 gathers it when the module is called
        and not (head._forward_hooks or head._forward_pre_hooks)
    )


def _one_row(value: Any, labels: Tensor) -> Any:
    return value.reshape(1, -1) if isinstance(value, Tensor) and value.shape == labels.shape else value


def _accepted(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that the model's ``forward`` has parameters for; ``use_cache: False`` if it has one for that."""
    parameters = inspect.signature(model.forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(inputs)
    accepted = {name: value for name, value in inputs.items() if name in parameters}
    return accepted | ({"use_cache": False} if "use_cache" in parameters else {})


def _logits(output: Any) -> Tensor:
    """The logits of what a model returned."""
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if found is None and isinstance(output, Mapping):
        found = output.get("logits")
    if found is None and isinstance(output, tuple) and output:
        found = output[0]
    if not isinstance(found, Tensor):
        raise ModelError(
            f"loss sft: the model returned a {type(output).__name__}, expected logits of shape (rows, tokens,"
            " vocabulary) or an output with .logits; change the model or select another loss"
        )
    return found
