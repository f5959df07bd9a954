"""Checksums of frozen weights, which a checkpoint holds instead of the weights: building the model restores them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from hooktrain import Shard

__all__ = ["FrozenWeights", "checksum"]

Gather = Callable[[Any], list[Any]]
"""Collects a plain value of every rank."""

_HALVES = (torch.bfloat16, torch.float16)
_CHUNK = 1 << 20
"""Words of eight bytes at a time."""
_MIX = 0x5851F42D4C957F2D
"""An odd factor, so that chunks cannot be exchanged unnoticed."""
_ALL = (1 << 64) - 1


class FrozenWeights:
    """Checksums of a model's frozen weights as built; every method is collective.

    A run in another precision has the same weights, rounded. So float32 weights have checksums of their rounded values
    too, and a checkpoint that was saved in one precision is recognized in the other.

    A weight that was frozen later, or that something wrote to although it is frozen, is not among :meth:`unchanged`:
    building the model would not restore it, so a checkpoint has to hold it.

    Args:
        model: as it was built, before anything is loaded into it.
        shards: this rank's shards of its weights.
        gather: collects a value of every rank.
    """

    def __init__(self, model: Module, shards: Iterable[Shard], gather: Gather) -> None:
        shards = list(shards)
        self._built = _checksums(shards, _frozen(model, shards), gather, rounded=True)

    def unchanged(self, model: Module, shards: Iterable[Shard], gather: Gather) -> dict[str, list[str]]:
        """Return the weights that are frozen and still as built, on every rank.

        Returns:
            Checksums by name: of the weight as it is, and of a float32 one as bf16 and as fp16.
        """
        shards = list(shards)
        names = _frozen(model, shards) & self._built.keys()
        now = _checksums(shards, names, gather, rounded=False) if self._built else {}
        return {name: self._built[name] for name, (found,) in now.items() if found == self._built[name][0]}

    def different(
        self, expected: Mapping[str, str | Sequence[str]], shards: Iterable[Shard], gather: Gather
    ) -> list[str]:
        """Return the names in ``expected`` that the model as built lacks, or has with another checksum."""
        unknown = set(expected) - set(self._built)  # frozen in the run that saved, and trained in this one
        built = {**self._built, **(_checksums(shards, unknown, gather, rounded=True) if unknown else {})}
        texts = {name: [found] if isinstance(found, str) else found for name, found in expected.items()}
        return [name for name, found in texts.items() if not _agree(found, built.get(name, []))]


def checksum(tensor: Tensor) -> str:
    """Return text that is equal for two tensors of equal type, shape and bits, and otherwise almost surely not.

    It is a sum of integers made of the bits, in one pass over the memory. So it does not depend on device or threads,
    and ranks that hold a shard each can add up theirs.
    """
    return _text(str(tensor.dtype), tuple(tensor.shape), int(_sum(tensor)))


def _frozen(model: Module, shards: Iterable[Shard]) -> set[str]:
    """Return the names of frozen weights, and of what packed ones have besides: ``x.weight.absmax`` of ``x.weight``."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return frozen | {shard.name for shard in shards if _owner(shard.name, frozen)}


def _owner(name: str, frozen: Collection[str]) -> bool:
    while name:
        name = name.rpartition(".")[0]
        if name in frozen:
            return True
    return False


def _agree(one: Sequence[str], other: Sequence[str]) -> bool:
    """Return whether two weights are the same: bit by bit in one type, or one of them the other one rounded."""
    if not one or not other:
        return False
    same_type = one[0].split()[0] == other[0].split()[0]
    return one[0] == other[0] if same_type else one[0] in other[1:] or other[0] in one[1:]


def _checksums(
    shards: Iterable[Shard], names: Collection[str], gather: Gather, *, rounded: bool
) -> dict[str, list[str]]:
    """Return checksums of complete weights as they are and, if ``rounded``, of float32 ones as each of ``_HALVES``."""
    chosen = [shard for shard in shards if shard.name in names]
    full = [shard for shard in chosen if rounded and shard.values.dtype == torch.float32]
    mine: dict[str, list[Any]] = {shard.name: [] for shard in chosen}
    for dtype, some in ((None, chosen), *((half, full) for half in _HALVES)):
        totals = dict(_totals(some, dtype))
        for shard in some:
            mine[shard.name].append([str(dtype or shard.values.dtype), list(shard.shape), totals[shard.name]])
    found: dict[str, list[Any]] = {}
    for part in gather(mine):
        for name, facts in part.items():
            before = found.get(name, [(0, 0, 0)] * len(facts))
            found[name] = [
                (kind, tuple(shape), total + sum_)
                for (kind, shape, total), (*_, sum_) in zip(facts, before, strict=True)
            ]
    return {name: [_text(*facts) for facts in several] for name, several in found.items()}


def _totals(shards: Collection[Shard], dtype: torch.dtype | None) -> Iterator[tuple[str, int]]:
    for device in {shard.values.device for shard in shards}:
        here = [shard for shard in shards if shard.values.device == device]
        sums = [_sum(s.values if dtype is None else s.values.to(dtype), s.start) for s in here]
        yield from zip((shard.name for shard in here), torch.stack(sums).tolist(), strict=True)


def _text(dtype: str, shape: tuple[int, ...], total: int) -> str:
    return f"{dtype.removeprefix('torch.')} {'x'.join(map(str, shape))} {total & _ALL:016x}"


@torch.no_grad()
def _sum(tensor: Tensor, start: int = 0) -> Tensor:
    """Sum a tensor's words of eight bytes times odd factors that depend on their position, modulo 2**64, shape ().

    Args:
        tensor: a shard, or a complete tensor.
        start: position of its first element in the complete tensor.
    """
    data = tensor.detach().contiguous().reshape(-1)
    each = 8 // data.element_size() if data.element_size() <= 8 else 1
    total = torch.zeros((), dtype=torch.int64, device=data.device)
    if not len(data):
        return total
    head = min(-start % each, len(data))  # elements of a word that another shard begins
    body = (len(data) - head) // each * each
    for first, stop in ((0, head), (head + body, len(data))):
        if stop > first:
            word = torch.zeros(each, dtype=data.dtype, device=data.device)
            place = (start + first) % each
            word[place : place + stop - first] = data[first:stop]
            total += _weighted(_words(word), (start + first) // each)
    if body:
        total += _weighted(_words(data[head : head + body]), (start + head) // each)
    return total


def _words(data: Tensor) -> Tensor:
    raw = data.view(torch.uint8)
    return (raw if raw.data_ptr() % 8 == 0 and raw.storage_offset() % 8 == 0 else raw.clone()).view(torch.int64)


def _weighted(words: Tensor, first: int) -> Tensor:
    """Sum words times the factors of their positions, the first of which is ``first``."""
    total, factors, at = torch.zeros((), dtype=torch.int64, device=words.device), _factors(words.device), 0
    while at < len(words):
        chunk, place = divmod(first + at, _CHUNK)
        count = min(_CHUNK - place, len(words) - at)
        total += (words[at : at + count] * factors[place : place + count]).sum() * _signed(pow(_MIX, chunk, 1 << 64))
        at += count
    return total


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


@cache
def _factors(device: torch.device) -> Tensor:
    return torch.arange(1, 2 * _CHUNK, 2, dtype=torch.int64, device=device)
