"""Attention within documents as an operator of torch, for compiled blocks.

torch.compile guards on the numbers that a function reads, so that a graph that sees the lengths of documents serves one
micro-batch only. Here the graph sees a tensor with a number in it, which the operator looks up when it runs.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hooktrain_hf.compat import fused_attention, fused_attention_backward, recording_in_operator
from hooktrain_hf.document_attention import Documents, Scores, Visible, attend, attend_run, same_width
from hooktrain_hf.half_attention import LONGEST

__all__ = ["attend_in_graph", "describes_documents", "documents_of", "documents_tensor"]

_described: dict[int, Visible] = {}
_numbers = itertools.count()


def documents_tensor(visible: Visible) -> Tensor:
    """Return a tensor on the host, of shape (1, 1, 1, 1), for which :func:`documents_of` returns ``visible``."""
    number = next(_numbers)
    # the tensor's memory is the array's, which lives as long as anything can ask, such as a graph before its backward
    array = np.array([number])
    _described[number] = visible
    weakref.finalize(array, _described.pop, number, None).atexit = False
    return torch.from_numpy(array).view(1, 1, 1, 1)


def describes_documents(mask: Any) -> bool:
    """Return whether what stands in for a mask is a tensor of :func:`documents_tensor`."""
    return isinstance(mask, Tensor) and mask.dtype is torch.int64 and mask.dim() == 4


def documents_of(tensor: Tensor) -> Visible:
    """Return the documents, and the window, that a tensor describes."""
    return _described[int(tensor)]


def attend_in_graph(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: Tensor,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Compute attention within documents, without dropout; as :func:`hooktrain_hf.document_attention.attend`.

    Args:
        query: shape (sequences, heads, tokens, channels).
        key: shape (sequences, key heads, tokens, channels).
        value: shape (sequences, key heads, tokens, value channels).
        documents: made by :func:`documents_tensor`.
        scale: factor of the scores.
        softcap: bound that a tanh keeps scores within.
        sinks: scores of a place without value that every token attends to, shape (heads,).

    Returns:
        Shape (sequences, tokens, heads, value channels).
    """
    channels, device = value.shape[-1], query.device.type
    query, key, value = same_width(query, key, value)
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    made: Tensor = torch.ops.hooktrain.document_attention(query, key, value, sinks, documents, scale, softcap)[0]
    return made[..., :channels]


@torch.library.custom_op("hooktrain::document_attention", mutates_args=())
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    documents: Tensor,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Return the result, and the logarithms of the sums of exponentials, shape (sequences * tokens, heads)."""
    visible, scores = documents_of(documents), Scores(scale=scale, softcap=softcap, sinks=sinks)
    sequences, heads, tokens, channels = query.shape
    logs = query.new_empty(sequences * tokens, heads, dtype=torch.float32)
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        if not _is_run_by_run(query, scores):
            return attend(query, key, value, visible, scores).contiguous(), logs
        made = query.new_empty(sequences * tokens, heads, channels)
        for inputs, (result, sums) in _runs(visible.documents, (query, key, value), (made, logs[..., None])):
            if _is_fused(inputs[0], visible):
                found, sums_found = fused_attention(*_repeated(inputs), scale)
                sums.copy_(sums_found[..., None])
            else:
                query_run, key_run, value_run = inputs
                found = attend_run(query_run, key_run, value_run, visible, scores)
            result.copy_(found)
    return made.view(sequences, tokens, heads, channels), logs


@_forward.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    documents: Tensor,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    sequences, heads, tokens, channels = query.shape
    made = query.new_empty(sequences, tokens, heads, channels)
    return made, query.new_empty(sequences * tokens, heads, dtype=torch.float32)


@torch.library.custom_op("hooktrain::document_attention_backward", mutates_args=())
def _backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    made: Tensor,
    logs: Tensor,
    documents: Tensor,
    scale: float,
    softcap: float | None,
) -> list[Tensor]:
    """Return the gradients of queries, keys, values and, where there are any, sinks."""
    visible, scores = documents_of(documents), Scores(scale=scale, softcap=softcap, sinks=sinks)
    states = (query, key, value)
    with torch.autocast(query.device.type, enabled=False):
        if not _is_run_by_run(query, scores):
            return _recomputed(gradient, states, visible, scores)
        heads, channels = made.shape[-2:]
        flat = [each.reshape(-1, heads, channels) for each in (gradient, made)]
        gradients = [_like_tokens(each) for each in states]
        kept = (*flat, logs[..., None], *(each.flatten(0, 1) for each in gradients))
        for inputs, (mine, result, sums, *places) in _runs(visible.documents, states, kept):
            if _is_fused(inputs[0], visible):
                found: Any = fused_attention_backward(mine, *_repeated(inputs), result, sums[..., 0], scale)
            else:
                with recording_in_operator():
                    q, k, v = (each.detach().requires_grad_() for each in inputs)
                    found = torch.autograd.grad(attend_run(q, k, v, visible, scores), (q, k, v), mine)
            for place, each in zip(places, found, strict=True):
                # heads that share a key lie one after the other
                place.copy_(each if each.shape == place.shape else each.unflatten(1, (place.shape[1], -1)).sum(2))
    return [each.transpose(1, 2) for each in gradients]


@_backward.register_fake
def _(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    made: Tensor,
    logs: Tensor,
    documents: Tensor,
    scale: float,
    softcap: float | None,
) -> list[Tensor]:
    found = [_like_tokens(each).transpose(1, 2) for each in (query, key, value)]
    return found if sinks is None else [*found, torch.empty_like(sinks)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, sinks, documents, ctx.scale, ctx.softcap = inputs
    ctx.save_for_backward(query, key, value, sinks, *output, documents)


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    found = torch.ops.hooktrain.document_attention_backward(gradient, *ctx.saved_tensors, ctx.scale, ctx.softcap)
    return (*found[:3], found[3] if len(found) > 3 else None, None, None, None)


_forward.register_autograd(_differentiate, setup_context=_keep)


def _is_run_by_run(query: Tensor, scores: Scores) -> bool:
    """Return whether documents are computed here, so that the backward pass need not repeat them all."""
    return query.device.type == "cpu" and scores.plain


def _is_fused(query: Tensor, visible: Visible) -> bool:
    """Return whether documents of shape (documents, heads, length, channels) have torch's kernel both ways."""
    length = query.shape[2]
    if query.dtype is torch.bfloat16 and length <= LONGEST:
        return False  # its backward pass is slow there
    return visible.window is None or length <= visible.window


def _runs(documents: Documents, states: tuple[Tensor, ...], rows: tuple[Tensor, ...]) -> Iterator[tuple[Any, Any]]:
    """Yield views of documents of equal length, each of shape (documents, heads, length, channels).

    Args:
        documents: of a micro-batch.
        states: shape (sequences, heads, tokens, channels).
        rows: shape (sequences * tokens, heads, channels).
    """
    flat: Any = [each.transpose(1, 2).flatten(0, 1) for each in states]
    groups: Any = (flat, rows)
    at = 0
    for length, count in documents.runs:
        part = slice(at, at + length * count)
        at = part.stop
        of_states, of_rows = (
            [each[part].unflatten(0, (count, length)).transpose(1, 2) for each in group] for group in groups
        )
        yield of_states, of_rows


def _like_tokens(states: Tensor) -> Tensor:
    """Return an empty tensor of shape (sequences, tokens, heads, channels) for (sequences, heads, tokens, channels)."""
    sequences, heads, tokens, channels = states.shape
    return states.new_empty(sequences, tokens, heads, channels)


def _repeated(states: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = states
    if key.shape[1] != query.shape[1]:
        times = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    return query, key, value


def _recomputed(gradient: Tensor, states: tuple[Tensor, ...], visible: Visible, scores: Scores) -> list[Tensor]:
    """Compute the attention again, for its gradients."""
    with recording_in_operator():
        query, key, value = (each.detach().requires_grad_() for each in states)
        sinks = None if scores.sinks is None else scores.sinks.detach().requires_grad_()
        made = attend(query, key, value, visible, Scores(scale=scores.scale, softcap=scores.softcap, sinks=sinks))
        inputs = (query, key, value) if sinks is None else (query, key, value, sinks)
        found = torch.autograd.grad(made, inputs, gradient)
    placed = [_like_tokens(each).transpose(1, 2).copy_(mine) for each, mine in zip(states, found, strict=False)]
    return placed if sinks is None else [*placed, found[3].contiguous()]
