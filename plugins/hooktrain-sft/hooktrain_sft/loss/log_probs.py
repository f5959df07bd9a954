"""Log-probabilities of the labels of a micro-batch, for losses that compare sequences; logits are not kept."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from hooktrain import ModelError
from hooktrain_sft.compat import output_size
from hooktrain_sft.loss.chunked_linear import HeadGradient, Sums, automatic_chunk_size, balanced, chunks
from hooktrain_sft.loss.lm_head import HeadedForward
from hooktrain_sft.loss.logit_transform import LogitTransform
from hooktrain_sft.loss.model_inspection import accepted, innermost, logit_transform, logits_of
from hooktrain_sft.loss.model_outputs import Extras
from hooktrain_sft.loss.padded_documents import documents_given
from hooktrain_sft.loss.router_loss import RouterLoss
from hooktrain_sft.loss.supervised_positions import Targets, supervised
from hooktrain_sft.loss.token_loss import IGNORE_INDEX, CrossEntropy

__all__ = ["TokenLogProbs", "linear_log_probs"]

Runner = Callable[[nn.Module, Mapping[str, Any], Targets, Extras], Tensor]


class TokenLogProbs:
    """``log_probs(model, batch, num_target_tokens)``: the log-probability of each label, with a graph.

    A transformers model stops before its LM head, which then runs on the labelled positions only, a chunk at a time;
    the logits of a chunk are computed again in the backward pass. Any other model is called unchanged, and must return
    logits. Several models may be called, such as a policy and its reference.

    Args:
        chunk_size: most tokens at a time; None chooses by the size of the vocabulary.
    """

    def __init__(self, chunk_size: int | None = None) -> None:
        self._chunk_size = chunk_size
        self._runners: weakref.WeakKeyDictionary[nn.Module, Runner] = weakref.WeakKeyDictionary()

    def __call__(
        self,
        model: nn.Module,
        batch: Mapping[str, Any],
        num_target_tokens: int,
        extras: Extras | None = None,
        denominator: float = 0.0,
    ) -> Tensor:
        """Run the model on a micro-batch.

        Args:
            model: the model, wrapped or not.
            batch: ``input_ids``, ``labels`` (not shifted, -100 for none) and other inputs of the model, shape
                (sequences, tokens), on the model's device.
            num_target_tokens: the number of labels, the first of each sequence excluded; a host number, so that nothing
                here waits for the device.
            extras: takes the outputs that it names, and the loss of the model's router; a reference has none.
            denominator: what the micro-batch contributes to that of the loss.

        Returns:
            The log-probabilities in the order of the tokens, in single precision at least, shape (num_target_tokens,).

        Raises:
            ModelError: the model gives no logits, is an encoder-decoder, or does not return an output.
        """
        bare, inputs, extras = innermost(model), dict(batch), extras or Extras()
        extras.require_shape(bare)
        if "sequence_parallel" in inputs:
            raise ModelError(
                "strategy.sequence_parallel: this loss compares sequences, of which no rank has all tokens; remove"
                " sequence_parallel"
            )
        if bare not in self._runners:
            self._runners[bare] = self._runner(bare, inputs)
        with documents_given(inputs):
            found = self._runners[bare](model, inputs, Targets(num_target_tokens, denominator), extras)
        return found[:num_target_tokens]  # one that has no label stands for none

    def _runner(self, bare: nn.Module, batch: Mapping[str, Any]) -> Runner:
        transform, router = logit_transform(bare, batch), RouterLoss.of(bare)
        if transform is None:
            return partial(_from_logits, router=router)
        headed = _Headed(bare, CrossEntropy(), transform, self._chunk_size, None, router)
        return lambda model, inputs, targets, extras: headed(model, inputs, targets, extras)[0]


class _Headed(HeadedForward):
    """Computes log-probabilities in the place of a loss."""

    def _fused(self, hidden: Tensor, head: Any, targets: Tensor, weights: Tensor | None) -> tuple[Tensor, Sums]:
        made = linear_log_probs(hidden, head.weight, head.bias, targets, self._transform, self._chunk_size)
        return made, {}

    def _called(self, head: nn.Module, hidden: Tensor, targets: Tensor, weights: Tensor | None) -> tuple[Tensor, Sums]:
        def compute(chunk: Tensor, goal: Tensor) -> Tensor:
            return _log_probs(self._transform(head(chunk)), goal)

        size = self._chunk_size or automatic_chunk_size(output_size(head, self._model()), hidden.device.type)
        parts = zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
        return torch.cat([checkpoint(compute, *part, use_reentrant=False) for part in parts]), {}


def _from_logits(
    model: nn.Module, batch: Mapping[str, Any], targets: Targets, extras: Extras, router: RouterLoss | None
) -> Tensor:
    """Call a model for all of its logits."""
    inputs = {name: value for name, value in batch.items() if "labels" not in name}
    output = model(**accepted(innermost(model).forward, {**inputs, **extras.arguments(headed=False)}))
    logits = logits_of(output)
    positions, goals, _ = supervised(batch["labels"], targets.number)
    found = _log_probs(logits.reshape(-1, logits.shape[-1]).index_select(0, positions), goals)
    extras.take(output)
    extras.add_router(router, output, found, targets.denominator)
    return found


def _log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the log-probabilities of targets, 0 where there is none; shape (tokens,)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    goal = logits.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    return (goal - logits.logsumexp(1)) * (targets != IGNORE_INDEX)


def linear_log_probs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    transform: LogitTransform = LogitTransform(),
    chunk_size: int | None = None,
) -> Tensor:
    """Return the log-probabilities of the targets by a linear head, without keeping logits.

    Matrix products run in the autocast type, the rest in single precision at least.

    Args:
        hidden: input of the head, shape (tokens, hidden).
        weight: shape (vocabulary, hidden).
        bias: shape (vocabulary,), or None.
        targets: token ids, or -100 for none, whose log-probability is 0; shape (tokens,).
        transform: the model's transform of its logits.
        chunk_size: most tokens at a time; None chooses by the size of the vocabulary.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    size = balanced(len(hidden), chunk_size or automatic_chunk_size(len(weight), device))
    apply: Any = _LinearLogProbs.apply
    made: Tensor = apply(hidden, weight, bias, targets, transform, size, dtype)
    return made


class _LinearLogProbs(Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        transform: LogitTransform,
        size: int,
        dtype: torch.dtype,
    ) -> Tensor:
        head = _Head(weight, bias, transform, dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            found = [_log_probs(head.logits(hidden[part]), targets[part]) for part in chunks(len(hidden), size)]
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.head = transform, size, dtype
        return torch.cat(found)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        transform, size, dtype = ctx.head
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        head = _Head(weight, bias, transform, dtype)
        hidden_grad = torch.empty_like(hidden) if wants_hidden else None
        weight_grad = HeadGradient(weight, head.exact) if wants_weight else None
        bias_grad = hidden.new_zeros(len(weight), dtype=head.exact) if wants_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            for part in chunks(len(hidden), size):
                logits = head.logits(hidden[part])
                factor = torch.where(targets[part] != IGNORE_INDEX, scale[part], 0.0)[:, None]  # (chunk, 1)
                gradient = torch.softmax(logits, 1).mul_(-factor)
                gradient.scatter_add_(1, targets[part].clamp(min=0)[:, None], factor)
                gradient = transform.backward_(gradient, logits)
                if bias_grad is not None:
                    bias_grad += gradient.sum(0)
                gradient = gradient.to(dtype)
                if hidden_grad is not None:
                    hidden_grad[part] = gradient @ head.matrix
                if weight_grad is not None:
                    weight_grad.add(gradient, hidden[part].to(dtype))
        of_weight = None if weight_grad is None else weight_grad.total().to(weight.dtype)
        of_bias = None if bias_grad is None else bias_grad.to(bias.dtype)
        return hidden_grad, of_weight, of_bias, None, None, None, None


class _Head:
    """A linear head in the type of its matrix products."""

    def __init__(self, weight: Tensor, bias: Tensor | None, transform: LogitTransform, dtype: torch.dtype) -> None:
        self.matrix, self._bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        self._transform, self._dtype = transform, dtype
        self.exact = torch.promote_types(dtype, torch.float32)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the transformed logits, shape (tokens, vocabulary), in a tensor of their own."""
        product = torch.nn.functional.linear(hidden.to(self._dtype), self.matrix, self._bias)
        return self._transform.forward_(product.to(self.exact))
