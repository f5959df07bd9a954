"""Running a transformers model up to its LM head, then the head and the loss together."""

from __future__ import annotations

import inspect
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hooktrain import ModelError
from hooktrain_sft.compat import attention_implementation, output_size
from hooktrain_sft.loss.chunked_linear import Sums, automatic_chunk_size, linear_loss, logits_loss
from hooktrain_sft.loss.logit_transform import LogitTransform
from hooktrain_sft.loss.model_inspection import accepted, is_plain_linear, is_sharded_linear
from hooktrain_sft.loss.router_loss import RouterLoss
from hooktrain_sft.loss.supervised_positions import Targets, supervised
from hooktrain_sft.loss.token_loss import TokenLoss

__all__ = ["HeadLoss", "HeadedForward", "replaced_forward"]

logger = logging.getLogger(__name__)

HeadLoss = Callable[..., tuple[Tensor, Sums]]
"""A function from hidden states, the head's weight and bias, and targets to the total and the sums to log; a fifth
parameter takes the weights of the targets."""


class HeadedForward:
    """Calls a model with its ``forward`` replaced, for the time of the call, by one that returns the loss.

    The outermost module is called, because FSDP gathers weights, DeepSpeed prepares for the backward pass and prompt
    adapters lengthen the input there, and all of them hook into a module's call only.

    Args:
        model: the innermost model; it is not kept alive.
        token_loss: the loss of a chunk of tokens.
        transform: the model's transform of its logits.
        chunk_size: most tokens at a time, or None.
        fused: another loss for heads that are a plain linear layer; None is :func:`linear_loss`.
        router: the model's auxiliary loss, if it has one.
    """

    def __init__(
        self,
        model: nn.Module,
        token_loss: TokenLoss,
        transform: LogitTransform,
        chunk_size: int | None,
        fused: HeadLoss | None,
        router: RouterLoss | None,
    ) -> None:
        self._model = weakref.ref(model)
        self._token_loss, self._transform, self._chunk_size = token_loss, transform, chunk_size
        self._head_loss, self._router = fused, router
        self._flatten = "flash" in str(attention_implementation(model))
        if fused is not None and not (is_plain_linear(self._head) or is_sharded_linear(self._head)):
            logger.warning(
                "%s: its LM head has to be called as a module (adapters, hooks or sharded weights), so the fused loss"
                " from make_head_loss is not used; logits are computed in chunks, twice",
                type(model).__name__,
            )

    def __call__(self, model: nn.Module, batch: Mapping[str, Any], targets: Targets) -> tuple[Tensor, Sums]:
        with self._swapped_in(targets):
            total, sums = model(**batch, num_target_tokens=targets.number)
        return total, sums

    @property
    def _head(self) -> nn.Module:
        model: Any = self._model()
        head: nn.Module = model.get_output_embeddings()
        return head

    @contextmanager
    def _swapped_in(self, targets: Targets) -> Iterator[None]:
        model = self._model()
        assert model is not None
        # not arguments of the call: wrappers cast numbers to the type of the computation, in which weights are others
        self._own, self._weights, self._denominator = model.forward, targets.weights, targets.denominator
        try:
            with replaced_forward(model, self._forward):
                yield
        finally:
            del self._own, self._weights, self._denominator

    def _forward(
        self,
        *,
        num_target_tokens: int,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        **inputs: Any,
    ) -> tuple[Tensor, Sums]:
        inputs = {name: value for name, value in inputs.items() if value is not None}  # adapters pass every default on
        if self._flatten and not inputs.keys() & {"attention_mask", "cu_seq_lens_q"} and "position_ids" in inputs:
            # flash attention looks for restarting positions only where the batch is a single sequence
            shape = inputs["position_ids"].shape
            inputs = {name: _flattened(value, shape) for name, value in inputs.items()}
        hidden, output = self._hidden(inputs)  # (sequences, tokens, hidden)
        positions, targets, weights = supervised(labels, num_target_tokens, shift_labels, self._weights)
        hidden = hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions)  # (num_target_tokens, hidden)
        total, sums = self._loss(hidden, targets, weights)
        return (total, sums) if self._router is None else self._router.added(output, total, sums, self._denominator)

    def _hidden(self, inputs: Mapping[str, Any]) -> tuple[Tensor, Any]:
        """Return the last hidden state and the output that holds it."""
        model: Any = self._model()
        decoder = model.get_decoder()
        if self._router is None:
            output = decoder(**inputs, use_cache=False)
            return output.last_hidden_state, output
        # only the model's own forward computes its auxiliary loss; the head gets no token in it
        seen: list[Tensor] = []
        hook = decoder.register_forward_hook(lambda module, args, output: seen.append(output.last_hidden_state))
        try:
            none = torch.empty(0, dtype=torch.long, device=inputs["input_ids"].device)
            inputs = {**inputs, "logits_to_keep": none, "output_router_logits": True}
            output = self._own(**accepted(self._own, inputs))
        finally:
            hook.remove()
        return seen[0], output

    def _loss(self, hidden: Tensor, targets: Tensor, weights: Tensor | None) -> tuple[Tensor, Sums]:
        head: Any = self._head
        if is_plain_linear(head):
            return self._fused(hidden, head, targets, weights)
        if is_sharded_linear(head):
            return self._gathered(head, hidden, targets, weights)
        return self._called(head, hidden, targets, weights)

    def _fused(self, hidden: Tensor, head: Any, targets: Tensor, weights: Tensor | None) -> tuple[Tensor, Sums]:
        values = hidden, head.weight, head.bias, targets
        if self._head_loss is not None:
            if weights is None:
                return self._head_loss(*values)
            if len(inspect.signature(self._head_loss).parameters) < 5:
                raise ModelError(
                    "loss: the micro-batch has token_weights, which the fused loss that a plugin returned from"
                    " make_head_loss does not take; disable it in the recipe, or remove the weights from the data"
                )
            return self._head_loss(*values, weights)
        return linear_loss(*values, self._token_loss, self._transform, self._chunk_size, weights)

    def _gathered(
        self, head: nn.Module, hidden: Tensor, targets: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Sums]:
        """Compute the loss in the call of a head, for one whose weight is gathered for the call only."""
        names: list[str] = []

        def forward(hidden: Tensor, targets: Tensor) -> Tensor:
            total, sums = self._fused(hidden, head, targets, weights)
            names.extend(sums)
            return torch.stack([total, *(value.to(total.dtype) for value in sums.values())])

        with replaced_forward(head, forward):
            total, *sums = head(hidden, targets).unbind()
        return total, {name: value.detach() for name, value in zip(names, sums, strict=True)}

    def _called(self, head: nn.Module, hidden: Tensor, targets: Tensor, weights: Tensor | None) -> tuple[Tensor, Sums]:
        """Compute the loss from the logits of a head that must be called as a module; they are computed twice."""

        def chunk_loss(chunk: Tensor, goal: Tensor, factors: Tensor | None = None) -> Tensor:
            total, sums = logits_loss(self._transform(head(chunk)), goal, self._token_loss, factors)
            return torch.stack([total, *sums.values()])

        size = self._chunk_size or automatic_chunk_size(output_size(head, self._model()), hidden.device.type)
        given = (hidden, targets) if weights is None else (hidden, targets, weights)
        parts = zip(*(torch.split(value, size) for value in given), strict=True)
        found = torch.stack([checkpoint(chunk_loss, *part, use_reentrant=False) for part in parts]).sum(0)
        total, *sums = found.unbind()
        return total, {name: value.detach() for name, value in zip(self._token_loss.metrics, sums, strict=True)}


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace a module's ``forward`` for the time of the context; its hooks still run."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def _flattened(value: Any, shape: torch.Size) -> Any:
    return value.reshape(1, -1) if isinstance(value, Tensor) and value.shape == shape else value
