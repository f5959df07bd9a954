"""Causal attention in which documents that lie one after the other do not see each other.

Lengths are known to the host, so that nothing here waits for a device, and each document is computed by itself: time
grows with the squares of the documents' lengths instead of that of their sum, memory with the number of tokens.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from itertools import groupby
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hooktrain import ModelError
from hooktrain_hf.half_attention import attend_short, is_short

__all__ = ["Documents", "Scores", "Visible", "attend"]

logger = logging.getLogger(__name__)

BLOCK = 256
"""Queries at a time where scores are kept: under a sliding window, and where no kernel computes what is asked for."""

TOGETHER = 4096
"""Most tokens of documents of equal length that are computed together: what scores take must not grow with a batch."""


class Documents:
    """Where the documents of a micro-batch begin and end.

    Args:
        lengths: of the documents, in the order of the flattened (rows * tokens) positions; none spans two rows.
        offsets: where they begin and where the last one ends, int32, shape (documents + 1,), on the model's device;
            only variable-length kernels read it.
        ranks: those that share the rows, where queries, keys and values are of a stretch of each; the documents are of
            the whole rows.
    """

    def __init__(self, lengths: tuple[int, ...], offsets: Tensor | None = None, ranks: Any = None) -> None:
        self.lengths, self.offsets, self.ranks = lengths, offsets, ranks
        self.longest = max(lengths)
        self.runs: list[tuple[int, int]] = []  # length, and how many documents of it are computed together
        for length, same in groupby(lengths):
            left, most = len(list(same)), max(1, TOGETHER // length)
            self.runs += [(length, min(most, left - done)) for done in range(0, left, most)]

    def numbers(self, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Which document each position belongs to, and its place there, both of shape (rows, tokens)."""
        lengths = torch.tensor(self.lengths, device="cpu")
        document = torch.repeat_interleave(lengths)
        place = torch.arange(len(document), device="cpu") - (lengths.cumsum(0) - lengths)[document]
        return document.view(rows, -1).to(device), place.view(rows, -1).to(device)


class Visible:
    """What a token may attend to: those before it in its document, or the last ``window`` of them, itself included."""

    def __init__(self, documents: Documents, window: int | None) -> None:
        self.documents, self.window = documents, window
        self._bands: dict[tuple[int, int, int], Tensor] = {}

    def dense(self, rows: int, device: torch.device) -> Tensor:
        """The same as a mask, True where attention is allowed, shape (rows, 1, tokens, tokens)."""
        document, place = self.documents.numbers(rows, device)
        behind = place[:, :, None] - place[:, None, :]
        seen = (document[:, :, None] == document[:, None, :]) & (behind >= 0)
        if self.window is not None:
            seen &= behind < self.window
        return seen[:, None]

    def band(self, queries: int, keys: int, first: int, device: torch.device) -> Tensor:
        """The mask of consecutive queries of a document, the first of which is key number ``first``."""
        if (queries, keys, first) not in self._bands:
            behind = torch.arange(first, first + queries, device=device)[:, None] - torch.arange(keys, device=device)
            seen = behind >= 0
            if self.window is not None:
                seen &= behind < self.window
            self._bands[queries, keys, first] = seen
        return self._bands[queries, keys, first]


@attrs.frozen(eq=False)
class Scores:
    """How queries and keys become weights."""

    scale: float
    """Factor of their products."""
    dropout: float = 0.0
    """Share of the weights that are set to zero."""
    softcap: float | None = None
    """Bound that a tanh keeps scores within."""
    sinks: Tensor | None = None
    """Scores of a place without value that every token attends to, one for each head, shape (heads,)."""

    def of_rank(self, ranks: Any) -> Scores:
        """Those of this rank's share of the heads."""
        return self if self.sinks is None else attrs.evolve(self, sinks=self.sinks.chunk(ranks.size)[ranks.rank])

    @property
    def plain(self) -> bool:
        """Whether a fused kernel computes them."""
        return self.softcap is None and self.sinks is None


def attend(query: Tensor, key: Tensor, value: Tensor, visible: Visible, scores: Scores) -> Tensor:
    """Attention within documents.

    Args:
        query: shape (rows, heads, tokens, channels).
        key: shape (rows, key heads, tokens, channels), the key heads being a divisor of the heads.
        value: shape (rows, key heads, tokens, value channels).
        visible: the documents, whose lengths sum to rows * tokens, of all ranks where they share rows; and the window.
        scores: how products become weights.

    Returns:
        Shape (rows, tokens, heads, value channels).
    """
    ranks = visible.documents.ranks
    if ranks is not None:
        query, key, value = (ranks.to_heads(states) for states in _shareable(query, key, value, ranks.size))
        scores = scores.of_rank(ranks)
        made = _attend(query, key, value, visible, scores)
        whole: Tensor = ranks.to_tokens(made)
        return whole
    return _attend(query, key, value, visible, scores)


def _shareable(query: Tensor, key: Tensor, value: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values repeated where there are not enough heads of them for all ranks."""
    heads, key_heads = query.shape[1], key.shape[1]
    if heads % size:
        raise ModelError(
            f"strategy.sequence_parallel: given {size}, but the model's attention has {heads} heads, which cannot be"
            " shared evenly; write a divisor of that"
        )
    if key_heads % size:
        times = math.lcm(key_heads, size) // key_heads if heads % math.lcm(key_heads, size) == 0 else heads // key_heads
        key, value = (states.repeat_interleave(times, 1) for states in (key, value))
    return query, key, value


def _attend(query: Tensor, key: Tensor, value: Tensor, visible: Visible, scores: Scores) -> Tensor:
    rows, _, tokens, _ = query.shape
    channels = value.shape[-1]
    query, key, value = (_one_row(_narrowed(t, scores)) for t in _same_width(query, key, value))
    if _has_kernel(query, visible, scores):
        made = _varlen(query, key, value, visible, scores)
    else:
        made = _by_document(query, key, value, visible, scores)
    return made[..., :channels].reshape(rows, tokens, -1, channels)


def _narrowed(states: Tensor, scores: Scores) -> Tensor:
    """In autocast's type, which torch gives to its fused kernels: rotary embeddings leave queries and keys wider."""
    device = states.device.type
    if scores.plain and device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
        return states.to(torch.get_autocast_dtype(device))
    return states


def _one_row(states: Tensor) -> Tensor:
    """(rows, heads, tokens, channels) to (1, heads, rows * tokens, channels), without a copy where memory allows it."""
    return states if len(states) == 1 else states.transpose(1, 2).flatten(0, 1)[None].transpose(1, 2)


def _same_width(*states: Tensor) -> tuple[Tensor, ...]:
    """Zeros where channels are fewer, as in latent attention: fused kernels want equally many, and scores stay."""
    width = max(t.shape[-1] for t in states)
    return tuple(t if t.shape[-1] == width else F.pad(t, (0, width - t.shape[-1])) for t in states)


def _by_document(query: Tensor, key: Tensor, value: Tensor, visible: Visible, scores: Scores) -> Tensor:
    """Shape (1, tokens, heads, channels). Consecutive documents of equal length are computed together."""
    runs = visible.documents.runs
    sizes = [length * count for length, count in runs]
    # split and not slices: its gradient is one concatenation instead of a sum of mostly empty tensors
    parts = [torch.split(t, sizes, 2) if len(sizes) > 1 else (t,) for t in (query, key, value)]
    made = []
    for (length, count), *states in zip(runs, *parts, strict=True):
        q, k, v = (t[0].unflatten(1, (count, length)).transpose(0, 1) for t in states)  # (documents, heads, ...)
        made.append(_causal(q, k, v, visible, scores).transpose(1, 2).flatten(0, 1))
    return (torch.cat(made) if len(made) > 1 else made[0])[None]


def _causal(q: Tensor, k: Tensor, v: Tensor, visible: Visible, scores: Scores) -> Tensor:
    """Documents of equal length, shape (documents, heads, length, channels)."""
    length = q.shape[2]
    # torch's fused kernel for the processor has no dropout, and what it has instead keeps all scores
    if not scores.plain or (scores.dropout > 0 and q.device.type == "cpu"):
        return _blocks(q, k, v, visible, functools.partial(_weighted, scores=scores), recompute=length > BLOCK)
    fused = functools.partial(
        F.scaled_dot_product_attention,
        dropout_p=scores.dropout,
        scale=scores.scale,
        enable_gqa=k.shape[1] != q.shape[1],
    )
    if visible.window is None or length <= visible.window:
        if is_short(q, k, v):
            return attend_short(q, k, v, scores.scale)
        return fused(q, k, v, is_causal=True)
    return _blocks(q, k, v, visible, lambda q, k, v, seen: fused(q, k, v, attn_mask=seen))


def _blocks(
    q: Tensor, k: Tensor, v: Tensor, visible: Visible, attention: Callable[..., Tensor], recompute: bool = False
) -> Tensor:
    """A block of queries after the other, each with the keys that one of them sees."""
    length, made = q.shape[2], []
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        low = 0 if visible.window is None else max(0, start - visible.window + 1)
        seen = visible.band(stop - start, stop - low, start - low, q.device)
        states = q[:, :, start:stop], k[:, :, low:stop], v[:, :, low:stop]
        if recompute and torch.is_grad_enabled():  # kept scores would be as many as the square of the length
            made.append(checkpoint(attention, *states, seen, use_reentrant=False))
        else:
            made.append(attention(*states, seen))
    return torch.cat(made, 2) if len(made) > 1 else made[0]


def _weighted(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scores: Scores) -> Tensor:
    """Attention with soft-capped scores, sinks or dropout, step by step; the softmax is in float32."""
    documents, heads, queries, _ = q.shape
    key_heads, keys = k.shape[1:3]
    grouped = q.reshape(documents, key_heads, -1, q.shape[-1])  # heads that share a key lie one after the other
    weights = (grouped @ k.transpose(2, 3)).view(documents, heads, queries, keys) * scores.scale
    if scores.softcap is not None:
        weights = torch.tanh(weights / scores.softcap) * scores.softcap
    weights = weights.float().masked_fill(~seen, -torch.inf)
    if scores.sinks is not None:
        sinks = scores.sinks.float().view(1, -1, 1, 1).expand(documents, heads, queries, 1)
        weights = torch.cat([weights, sinks], -1)
    weights = torch.softmax(weights, -1)[..., :keys].to(v.dtype)
    weights = F.dropout(weights, scores.dropout)
    return (weights.view(documents, key_heads, -1, keys) @ v).view(documents, heads, queries, -1)


# ------------------------------------------------------------------------------------------- one kernel for all of them

_trusted: dict[tuple[Any, ...], bool] = {}
"""Whether torch's variable-length kernel has given what documents one by one give, by what it was asked for."""


def _has_kernel(query: Tensor, visible: Visible, scores: Scores) -> bool:
    """Whether torch has a variable-length kernel for this, which only NVIDIA GPUs from Ampere on have."""
    return (
        query.device.type == "cuda"
        and query.dtype in (torch.float16, torch.bfloat16)
        and scores.plain
        and scores.dropout == 0
        and query.shape[-1] <= 256
        and query.shape[-1] % 8 == 0
        and visible.documents.offsets is not None
        and _varlen_kernel() is not None
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


@functools.cache
def _varlen_kernel() -> Callable[..., Any] | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # torch before 2.10
        return None
    return varlen_attn


def _varlen(query: Tensor, key: Tensor, value: Tensor, visible: Visible, scores: Scores) -> Tensor:
    """Shape (1, tokens, heads, channels). The kernel is believed when its first answer equals the documents' own."""
    window = visible.window if visible.window is not None and visible.documents.longest > visible.window else None
    case = (query.device, query.dtype, query.shape[1], key.shape[1], query.shape[3], window)
    if _trusted.get(case, True):
        kernel, documents = _varlen_kernel(), visible.documents
        assert kernel is not None
        try:
            made: Tensor = kernel(
                *(t.transpose(1, 2)[0] for t in (query, key, value)),
                documents.offsets,
                documents.offsets,
                documents.longest,
                documents.longest,
                scale=scores.scale,
                window_size=(-1, 0) if window is None else (window - 1, 0),
                enable_gqa=query.shape[1] != key.shape[1],
            )[None]
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError) as problem:
            _distrust(case, str(problem))
        else:
            if case not in _trusted:
                with torch.no_grad():
                    difference = (made - _by_document(query, key, value, visible, scores)).abs().max()
                    _trusted[case] = bool(difference <= 0.05 * value.abs().max())
                if not _trusted[case]:
                    _distrust(case, f"it differs by {float(difference):.2g}")
            if _trusted[case]:
                return made
    return _by_document(query, key, value, visible, scores)


def _distrust(case: tuple[Any, ...], why: str) -> None:
    _trusted[case] = False
    logger.warning("torch's variable-length attention is not used here (%s); documents are computed one by one", why)
