"""Causal attention within documents that lie one after the other in a sequence.

The host knows the lengths, so that nothing here waits for a device. Each document is computed alone: time grows with
the squares of the documents' lengths instead of that of their sum, memory with the number of tokens.
"""

from __future__ import annotations

import functools
import itertools
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

__all__ = ["Documents", "Scores", "Visible", "attend", "attend_run", "same_width"]

logger = logging.getLogger(__name__)

BLOCK = 256
"""Queries computed at a time where scores are kept: under a sliding window, and where no fused kernel is used."""

TOGETHER = 4096
"""Most tokens of documents of equal length that are computed together: memory for scores must not grow with a batch."""


class Documents:
    """Beginnings and ends of the documents of a micro-batch.

    Args:
        lengths: of the documents, in the order of the flattened (sequences * tokens) positions; none spans two
            sequences.
        offsets: where they begin and where the last one ends, int32, shape (documents + 1,), on the model's device;
            only variable-length kernels read it.
        ranks: the ranks that share the sequences, each of which has the queries, keys and values of a shard; the
            documents are those of the complete sequences.
        prefixes: for each document, how many tokens it shares with the beginning of the one before: it sees them there,
            and has none of its own for them. Empty where no document shares any.
    """

    def __init__(
        self,
        lengths: tuple[int, ...],
        offsets: Tensor | None = None,
        ranks: Any = None,
        prefixes: tuple[int, ...] = (),
    ) -> None:
        self.lengths, self.offsets, self.ranks = lengths, offsets, ranks
        self.prefixes = prefixes if any(prefixes) else ()
        self.longest = max(map(sum, zip(lengths, prefixes or (0,) * len(lengths), strict=True)))
        self.runs: list[tuple[int, int]] = []  # length, and how many documents of it are computed together
        for length, same in groupby(lengths):
            left, most = len(list(same)), max(1, TOGETHER // length)
            self.runs += [(length, min(most, left - done)) for done in range(0, left, most)]

    def numbers(self, sequences: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return each position's document and its place there, both of shape (sequences, tokens)."""
        lengths = torch.tensor(self.lengths, device="cpu")
        document = torch.repeat_interleave(lengths)
        place = torch.arange(len(document), device="cpu") - (lengths.cumsum(0) - lengths)[document]
        if self.prefixes:
            place += torch.tensor(self.prefixes, device="cpu")[document]
        return document.view(sequences, -1).to(device), place.view(sequences, -1).to(device)

    def shared(self, document: Tensor) -> Tensor | None:
        """Return how many tokens of the document before its own each position sees; None where no document shares any.

        Args:
            document: the number of each position's document, as :meth:`numbers` returns it.
        """
        return torch.tensor(self.prefixes, device=document.device)[document] if self.prefixes else None

    def keys(self, device: torch.device) -> tuple[Tensor, Tensor, int]:
        """Return the keys that each document sees, one document after the other.

        Returns:
            Their positions, shape (keys,); where each document's begin and the last one's end, int32, shape
            (documents + 1,); and the most of a document.
        """
        starts = [0, *itertools.accumulate(self.lengths)]
        spans = [
            [(starts[number - 1], prefix), (starts[number], length)] if prefix else [(starts[number], length)]
            for number, (length, prefix) in enumerate(zip(self.lengths, self.prefixes, strict=True))
        ]
        sizes = [sum(length for _, length in of_document) for of_document in spans]
        places = torch.cat([torch.arange(start, start + length) for each in spans for start, length in each])
        offsets = torch.tensor([0, *itertools.accumulate(sizes)], dtype=torch.int32)
        return places.to(device, non_blocking=True), offsets.to(device, non_blocking=True), max(sizes)


class Visible:
    """The tokens that each token attends to: itself and those before it in its document, at most ``window`` of them."""

    def __init__(self, documents: Documents, window: int | None) -> None:
        self.documents, self.window = documents, window
        self._bands: dict[tuple[int, int, int], Tensor] = {}

    def dense(self, sequences: int, device: torch.device) -> Tensor:
        """Return the mask, True where attention is allowed, shape (sequences, 1, tokens, tokens)."""
        document, place = self.documents.numbers(sequences, device)
        behind = place[:, :, None] - place[:, None, :]
        same = document[:, :, None] == document[:, None, :]
        if (shared := self.documents.shared(document)) is not None:
            before = document[:, :, None] == document[:, None, :] + 1
            same |= before & (place[:, None, :] < shared[:, :, None])
        seen = same & (behind >= 0)
        if self.window is not None:
            seen &= behind < self.window
        return seen[:, None]

    def band(self, queries: int, keys: int, first: int, device: torch.device) -> Tensor:
        """Return the mask of consecutive queries of a document, the first of which is key number ``first``."""
        if (queries, keys, first) not in self._bands:
            behind = torch.arange(first, first + queries, device=device)[:, None] - torch.arange(keys, device=device)
            seen = behind >= 0
            if self.window is not None:
                seen &= behind < self.window
            self._bands[queries, keys, first] = seen
        return self._bands[queries, keys, first]


@attrs.frozen(eq=False)
class Scores:
    """Computation of attention probabilities from queries and keys."""

    scale: float
    """Factor of their products."""
    dropout: float = 0.0
    """Share of the probabilities that are set to zero."""
    softcap: float | None = None
    """Bound that a tanh keeps scores within."""
    sinks: Tensor | None = None
    """Scores of a place without value that every token attends to, one for each head, shape (heads,)."""

    def of_rank(self, ranks: Any) -> Scores:
        """Return the scores of this rank's share of the heads."""
        return self if self.sinks is None else attrs.evolve(self, sinks=self.sinks.chunk(ranks.size)[ranks.rank])

    @property
    def plain(self) -> bool:
        """Whether fused kernels support them."""
        return self.softcap is None and self.sinks is None


def attend(query: Tensor, key: Tensor, value: Tensor, visible: Visible, scores: Scores) -> Tensor:
    """Compute attention within documents.

    Args:
        query: shape (sequences, heads, tokens, channels).
        key: shape (sequences, key heads, tokens, channels), the key heads being a divisor of the heads.
        value: shape (sequences, key heads, tokens, value channels).
        visible: the documents, whose lengths sum to sequences * tokens, of all ranks where they share sequences; and
            the sliding window.
        scores: the computation of probabilities.

    Returns:
        Shape (sequences, tokens, heads, value channels).
    """
    ranks = visible.documents.ranks
    if ranks is not None:
        query, key, value = (ranks.to_heads(states) for states in _shareable(query, key, value, ranks.size))
        scores = scores.of_rank(ranks)
        made: Tensor = ranks.to_tokens(_attend(query, key, value, visible, scores))
        return made
    return _attend(query, key, value, visible, scores)


def _shareable(query: Tensor, key: Tensor, value: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Repeat keys and values where they have too few heads for all ranks."""
    heads, key_heads = query.shape[1], key.shape[1]
    if heads % size:
        raise ModelError(
            f"strategy.sequence_parallel: given {size}, expected a divisor of the model's {heads} attention heads;"
            " write one"
        )
    if key_heads % size:
        times = math.lcm(key_heads, size) // key_heads if heads % math.lcm(key_heads, size) == 0 else heads // key_heads
        key, value = (states.repeat_interleave(times, 1) for states in (key, value))
    return query, key, value


def _attend(query: Tensor, key: Tensor, value: Tensor, visible: Visible, scores: Scores) -> Tensor:
    sequences, _, tokens, _ = query.shape
    channels = value.shape[-1]
    query, key, value = (_one_sequence(_narrowed(t, scores)) for t in same_width(query, key, value))
    if _has_kernel(query, visible, scores):
        made = _varlen(query, key, value, visible, scores)
    else:
        made = _by_document(query, key, value, visible, scores)
    return made[..., :channels].reshape(sequences, tokens, -1, channels)


def _narrowed(states: Tensor, scores: Scores) -> Tensor:
    """Cast to autocast's type, as torch does for its fused kernels: rotary embeddings leave queries and keys wider."""
    device = states.device.type
    if scores.plain and device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
        return states.to(torch.get_autocast_dtype(device))
    return states


def _one_sequence(states: Tensor) -> Tensor:
    """Join (sequences, heads, tokens, channels) to (1, heads, sequences * tokens, channels), if possible uncopied."""
    return states if len(states) == 1 else states.transpose(1, 2).flatten(0, 1)[None].transpose(1, 2)


def same_width(*states: Tensor) -> tuple[Tensor, ...]:
    """Pad channels with zeros where they differ, as in latent attention: fused kernels need equally many."""
    width = max(t.shape[-1] for t in states)
    return tuple(t if t.shape[-1] == width else F.pad(t, (0, width - t.shape[-1])) for t in states)


def _by_document(query: Tensor, key: Tensor, value: Tensor, visible: Visible, scores: Scores) -> Tensor:
    """Compute documents one by one, consecutive ones of equal length together; shape (1, tokens, heads, channels)."""
    if visible.documents.prefixes:
        return _with_prefixes(query, key, value, visible, scores)
    runs = visible.documents.runs
    sizes = [length * count for length, count in runs]
    # split and not slices: its gradient is one concatenation instead of a sum of mostly empty tensors
    parts = [torch.split(t, sizes, 2) if len(sizes) > 1 else (t,) for t in (query, key, value)]
    made = []
    for (length, count), *states in zip(runs, *parts, strict=True):
        q, k, v = (t[0].unflatten(1, (count, length)).transpose(0, 1) for t in states)  # (documents, heads, ...)
        made.append(attend_run(q, k, v, visible, scores).transpose(1, 2).flatten(0, 1))
    return (torch.cat(made) if len(made) > 1 else made[0])[None]


def _with_prefixes(query: Tensor, key: Tensor, value: Tensor, visible: Visible, scores: Scores) -> Tensor:
    """Compute documents one by one, some of which see the beginning of the one before; shape as in _by_document."""
    documents = visible.documents
    queries, keys, values = (torch.split(t, list(documents.lengths), 2) for t in (query, key, value))
    made = []
    for number, (q, prefix) in enumerate(zip(queries, documents.prefixes, strict=True)):
        k, v = keys[number], values[number]
        if prefix:
            k, v = (torch.cat([t[number - 1][:, :, :prefix], t[number]], 2) for t in (keys, values))
            made.append(_after(q, k, v, visible, scores))
        else:
            made.append(attend_run(q, k, v, visible, scores))
    return torch.cat(made, 2).transpose(1, 2)


def _after(q: Tensor, k: Tensor, v: Tensor, visible: Visible, scores: Scores) -> Tensor:
    """Compute a document whose keys begin before its queries."""
    if not scores.plain or (scores.dropout > 0 and q.device.type == "cpu"):
        attention = functools.partial(_unfused, scores=scores)
        return _blocks(q, k, v, visible, attention, recompute=q.shape[2] > BLOCK)
    fused = _fused(scores, enable_gqa=k.shape[1] != q.shape[1])
    return _blocks(q, k, v, visible, lambda q, k, v, seen: fused(q, k, v, attn_mask=seen))


def _fused(scores: Scores, enable_gqa: bool) -> Callable[..., Tensor]:
    """Return torch's fused attention."""
    return functools.partial(
        F.scaled_dot_product_attention, dropout_p=scores.dropout, scale=scores.scale, enable_gqa=enable_gqa
    )


def attend_run(q: Tensor, k: Tensor, v: Tensor, visible: Visible, scores: Scores) -> Tensor:
    """Compute documents of equal length, shape (documents, heads, length, channels)."""
    length = q.shape[2]
    # torch's fused kernel for the processor has no dropout, and its unfused one keeps all scores
    if not scores.plain or (scores.dropout > 0 and q.device.type == "cpu"):
        return _blocks(q, k, v, visible, functools.partial(_unfused, scores=scores), recompute=length > BLOCK)
    fused = _fused(scores, enable_gqa=k.shape[1] != q.shape[1])
    if visible.window is None or length <= visible.window:
        if is_short(q, k, v):
            return attend_short(q, k, v, scores.scale)
        return fused(q, k, v, is_causal=True)
    return _blocks(q, k, v, visible, lambda q, k, v, seen: fused(q, k, v, attn_mask=seen))


def _blocks(
    q: Tensor, k: Tensor, v: Tensor, visible: Visible, attention: Callable[..., Tensor], recompute: bool = False
) -> Tensor:
    """Compute blocks of queries one after the other, each with the keys that one of its queries sees.

    The last query is that of the last key; keys may begin before the queries.
    """
    length, before, made = q.shape[2], k.shape[2] - q.shape[2], []
    for first in range(0, length, BLOCK):
        start, stop = first + before, min(first + BLOCK, length) + before
        low = 0 if visible.window is None else max(0, start - visible.window + 1)
        seen = visible.band(stop - start, stop - low, start - low, q.device)
        states = q[:, :, first : stop - before], k[:, :, low:stop], v[:, :, low:stop]
        if recompute and torch.is_grad_enabled():  # kept scores would be as many as the square of the length
            made.append(checkpoint(attention, *states, seen, use_reentrant=False))
        else:
            made.append(attention(*states, seen))
    return torch.cat(made, 2) if len(made) > 1 else made[0]


def _unfused(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scores: Scores) -> Tensor:
    """Compute attention with soft-capped scores, sinks or dropout, step by step; the softmax is in float32."""
    documents, heads, queries, _ = q.shape
    key_heads, keys = k.shape[1:3]
    grouped = q.reshape(documents, key_heads, -1, q.shape[-1])  # heads that share a key lie one after the other
    products = (grouped @ k.transpose(2, 3)).view(documents, heads, queries, keys) * scores.scale
    if scores.softcap is not None:
        products = torch.tanh(products / scores.softcap) * scores.softcap
    products = products.float().masked_fill(~seen, -torch.inf)
    if scores.sinks is not None:
        sinks = scores.sinks.float().view(1, -1, 1, 1).expand(documents, heads, queries, 1)
        products = torch.cat([products, sinks], -1)
    probabilities = F.dropout(torch.softmax(products, -1)[..., :keys].to(v.dtype), scores.dropout)
    return (probabilities.view(documents, key_heads, -1, keys) @ v).view(documents, heads, queries, -1)


# ------------------------------------------------------------------------------------------- one kernel for all of them

_trusted: dict[tuple[Any, ...], bool] = {}
"""Whether torch's variable-length kernel gave the same result as documents one by one, by kind of call."""


def _has_kernel(query: Tensor, visible: Visible, scores: Scores) -> bool:
    """Return whether torch has a variable-length kernel for these states, as it does on NVIDIA GPUs from Ampere on."""
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
    """Call the kernel, and keep to it if its first result equals that of documents one by one; shape as there."""
    window = visible.window if visible.window is not None and visible.documents.longest > visible.window else None
    shares = bool(visible.documents.prefixes)
    case = (query.device, query.dtype, query.shape[1], key.shape[1], query.shape[3], window, shares)
    if _trusted.get(case, True):
        kernel, documents = _varlen_kernel(), visible.documents
        assert kernel is not None
        states: tuple[Tensor, ...] = (query, key, value)
        offsets, longest = documents.offsets, documents.longest
        if shares:
            places, offsets, longest = documents.keys(query.device)
            states = (query, *(t.index_select(2, places) for t in (key, value)))
        try:
            made: Tensor = kernel(
                *(t.transpose(1, 2)[0] for t in states),
                documents.offsets,
                offsets,
                documents.longest,
                longest,
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
