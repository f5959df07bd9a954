"""Sequence parallelism as in DeepSpeed's Ulysses (Jacobs et al., 2023): ranks share the tokens of a sequence.

Each rank computes its shard of every sequence. For attention, which needs all tokens, the ranks exchange shards: each
gets the complete sequence for a part of the heads, and returns the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from hooktrain import Batch, HooktrainError, World, document_keys

if TYPE_CHECKING:
    from hooktrain_torch.ranks import Ranks

__all__ = ["SequenceGroup", "data_world", "divide"]

_IGNORE_INDEX = -100
_SHIFTED = {"labels": _IGNORE_INDEX, "token_weights": 0}
"""What belongs to the next token, and the value for a sequence's last position, which predicts none."""


def data_world(world: World, size: int) -> World:
    """Return this rank's place among those that get sequences of their own.

    Args:
        world: all ranks.
        size: consecutive ranks that share a sequence.

    Raises:
        HooktrainError: when the ranks are not a multiple of ``size``.
    """
    if world.world_size % size:
        raise HooktrainError(
            f"strategy.sequence_parallel: given {size} with {world.world_size} ranks, expected a divisor of their"
            " number; start more ranks, or write another number"
        )
    return World(rank=world.rank // size, world_size=world.world_size // size, local_rank=world.local_rank)


class SequenceGroup:
    """The ranks that share a sequence. A batch carries it to the attention, as ``sequence_parallel``.

    Args:
        world: all ranks.
        size: how many of them share a sequence.
        group: their process group.
    """

    def __init__(self, world: World, size: int, group: Any) -> None:
        self.size, self.rank, self.group = size, world.rank % size, group

    @classmethod
    def of(cls, ranks: Ranks, size: int) -> SequenceGroup | None:
        """Make the group of this rank, or None where each rank has sequences of its own. Collective."""
        return None if size == 1 else cls(ranks.world, size, ranks.neighbours(size))

    def to_heads(self, states: Tensor) -> Tensor:
        """Exchange this rank's tokens of all heads for all tokens of its heads.

        Args:
            states: shape (sequences, heads, tokens of a rank, channels), the heads being a multiple of ``size``.

        Returns:
            Shape (sequences, heads / size, tokens, channels).
        """
        return _Exchange.apply(states, 1, 2, self)  # type: ignore[no-any-return,no-untyped-call]

    def to_tokens(self, states: Tensor) -> Tensor:
        """Exchange all tokens of this rank's heads for its tokens of all heads.

        Args:
            states: shape (sequences, tokens, heads / size, channels).

        Returns:
            Shape (sequences, tokens of a rank, heads, channels).
        """
        return _Exchange.apply(states, 1, 2, self)  # type: ignore[no-any-return,no-untyped-call]


class _Exchange(torch.autograd.Function):
    """Splits one dimension over ranks and gathers another, in forward and backward pass."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, split: int, gathered: int, ranks: SequenceGroup) -> Tensor:
        ctx.split, ctx.gathered, ctx.ranks = split, gathered, ranks
        return _exchanged(states, split, gathered, ranks)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _exchanged(gradients[0], ctx.gathered, ctx.split, ctx.ranks), None, None, None


def _exchanged(states: Tensor, split: int, gathered: int, ranks: SequenceGroup) -> Tensor:
    mine = torch.stack(states.chunk(ranks.size, split))  # (ranks, ...)
    theirs = torch.empty_like(mine)
    dist.all_to_all_single(theirs, mine, group=ranks.group)
    return torch.cat(theirs.unbind(), gathered)


def divide(batch: Batch, ranks: SequenceGroup | None) -> Batch:
    """Return a rank's shard of each sequence.

    Labels are shifted before they are split, since the label of a shard's last token lies in the next shard; so are the
    weights of labels, ``token_weights``. Sequences are padded to a multiple of the ranks by documents without labels.

    Args:
        batch: ``input_ids``, ``labels`` and ``position_ids``, shape (sequences, tokens); ``document_lengths`` of the
            flattened (sequences * tokens) positions.
        ranks: those that share the sequences; None returns the batch.

    Returns:
        The shards, shape (sequences, tokens / size), with ``shift_labels`` in the place of ``labels``, and
        ``shift_token_weights`` in that of ``token_weights``; the documents of the complete sequences; and
        ``sequence_parallel``, the ranks.

    Raises:
        HooktrainError: when the batch cannot be split.
    """
    if ranks is None:
        return batch
    if "denominator" in batch:
        raise HooktrainError(
            "strategy.sequence_parallel: the micro-batch has a denominator that counts"
            f" {batch.get('counts', 'tokens')}, expected none, since each rank counts the"
            " trained tokens of its shard; remove sequence_parallel"
        )
    missing = [name for name in ("input_ids", "labels", "position_ids", "document_lengths") if name not in batch]
    if missing or "attention_mask" in batch:
        raise HooktrainError(
            f"strategy.sequence_parallel: the micro-batch has {'no ' + missing[0] if missing else 'an attention_mask'},"
            " expected input_ids, labels, position_ids and document_lengths without a mask, as the data of sft and"
            " causal have them; remove sequence_parallel"
        )
    sequences, tokens = batch["input_ids"].shape
    more = -tokens % ranks.size
    each = (tokens + more) // ranks.size
    here = slice(ranks.rank * each, (ranks.rank + 1) * each)
    wide: Batch = {name: value for name, value in batch.items() if name not in _SHIFTED}
    for name, last in _SHIFTED.items():
        if name in batch:
            wide[f"shift_{name}"] = torch.full_like(batch[name], last)
            wide[f"shift_{name}"][:, :-1] = batch[name][:, 1:]
    made: Batch = {}
    for name, value in wide.items():
        is_split = isinstance(value, Tensor) and value.shape[:2] == (sequences, tokens)
        made[name] = _padded(name, value, more)[:, here].contiguous() if is_split else value
    if more:
        documents = document_keys(_with_padding(batch["document_lengths"], tokens, more))
        made |= {name: value for name, value in documents.items() if name in batch}
    # counts are summed over all ranks, so one of those that share the sequences reports for all of them
    made["tokens"] = 0 if ranks.rank else int(batch.get("tokens", sequences * tokens))
    return {**made, "sequence_parallel": ranks}


def _padded(name: str, value: Tensor, more: int) -> Tensor:
    if not more:
        return value
    filler = torch.zeros((len(value), more, *value.shape[2:]), dtype=value.dtype)
    if name == "shift_labels":
        filler.fill_(_IGNORE_INDEX)
    elif name == "position_ids":
        filler += torch.arange(more)
    return torch.cat([value, filler], 1)


def _with_padding(lengths: Sequence[int], tokens: int, more: int) -> Iterator[int]:
    """Yield the lengths of each sequence's documents, and of one of padding at its end."""
    at = 0
    for length in lengths:
        yield length
        at += length
        if at == tokens:
            yield more
            at = 0
