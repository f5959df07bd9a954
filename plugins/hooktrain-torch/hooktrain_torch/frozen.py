"""Frozen weights, which a checkpoint refers to instead of holding them: building the model gives them back."""

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
    """Remembers what a model's frozen weights are when it has just been built; every method is collective.

    A run in another precision has the same weights, rounded: so checksums of float32 weights come with those of what
    they are rounded to, and a checkpoint that was saved in one precision is recognized in the other.

    A weight that was frozen later, or that something has written to although it is frozen, is not among
    :meth:`unchanged`, so that nothing which building the model would not give back is left out of a checkpoint.

    Args:
        model: as it was built, before anything is loaded into it.
        fragments: this rank's share of its weights.
        gather: over the ranks.
    """

    def __init__(self, model: Module, fragments: Iterable[Shard], gather: Gather) -> None:
        self._built = _checksums(fragments, _frozen(model), gather, rounded=True)

    def unchanged(self, model: Module, fragments: Iterable[Shard], gather: Gather) -> dict[str, list[str]]:
        """Names of the weights that are frozen and still as they were built, on every rank.

        Returns:
            Their checksums: as they are, and those of float32 as bf16 and fp16.
        """
        names = _frozen(model) & self._built.keys()
        now = _checksums(fragments, names, gather, rounded=False) if self._built else {}
        return {name: self._built[name] for name, (found,) in now.items() if found == self._built[name][0]}

    def different(
        self, expected: Mapping[str, str | Sequence[str]], fragments: Iterable[Shard], gather: Gather
    ) -> list[str]:
        """Names in ``expected`` that the model, as it was built, lacks or has with another checksum."""
        unknown = set(expected) - set(self._built)  # frozen in the run that saved, and trained in this one
        built = {**self._built, **(_checksums(fragments, unknown, gather, rounded=True) if unknown else {})}
        texts = {name: [found] if isinstance(found, str) else found for name, found in expected.items()}
        return [name for name, found in texts.items() if not _agree(found, built.get(name, []))]


def checksum(tensor: Tensor) -> str:
    """Text that is equal for two tensors of equal type, shape and bits, and otherwise almost surely not.

    Integer arithmetic on the bits, so that it does not depend on device or threads; one pass over the memory. It is a
    sum, so that ranks which hold a stretch each can add up theirs.
    """
    return _text(str(tensor.dtype), tuple(tensor.shape), int(_sum(tensor)))


def _frozen(model: Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def _agree(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two weights are the same: bit by bit in one type, or one of them as the other one is rounded."""
    if not one or not other:
        return False
    same_type = one[0].split()[0] == other[0].split()[0]
    return one[0] == other[0] if same_type else one[0] in other[1:] or other[0] in one[1:]


def _checksums(
    fragments: Iterable[Shard], names: Collection[str], gather: Gather, *, rounded: bool
) -> dict[str, list[str]]:
    """Checksums of whole weights as they are and, when ``rounded``, of those in float32 as each of ``_HALVES``."""
    chosen = [fragment for fragment in fragments if fragment.name in names]
    whole = [fragment for fragment in chosen if rounded and fragment.values.dtype == torch.float32]
    mine: dict[str, list[Any]] = {f.name: [] for f in chosen}
    for dtype, some in ((None, chosen), *((half, whole) for half in _HALVES)):
        totals = dict(_totals(some, dtype))
        for f in some:
            mine[f.name].append([str(dtype or f.values.dtype), list(f.shape), totals[f.name]])
    found: dict[str, list[Any]] = {}
    for part in gather(mine):
        for name, facts in part.items():
            before = found.get(name, [(0, 0, 0)] * len(facts))
            found[name] = [
                (kind, tuple(shape), total + sum_)
                for (kind, shape, total), (*_, sum_) in zip(facts, before, strict=True)
            ]
    return {name: [_text(*facts) for facts in several] for name, several in found.items()}


def _totals(fragments: Collection[Shard], dtype: torch.dtype | None) -> Iterator[tuple[str, int]]:
    for device in {fragment.values.device for fragment in fragments}:
        here = [fragment for fragment in fragments if fragment.values.device == device]
        sums = [_sum(f.values if dtype is None else f.values.to(dtype), f.start) for f in here]
        yield from zip((fragment.name for fragment in here), torch.stack(sums).tolist(), strict=True)


def _text(dtype: str, shape: tuple[int, ...], total: int) -> str:
    return f"{dtype.removeprefix('torch.')} {'x'.join(map(str, shape))} {total & _ALL:016x}"


@torch.no_grad()
def _sum(tensor: Tensor, start: int = 0) -> Tensor:
    """Sum of a tensor's words of eight bytes times odd factors that depend on their place, modulo 2**64, shape ().

    Args:
        tensor: a stretch of a whole one.
        start: place of its first element there.
    """
    data = tensor.detach().contiguous().reshape(-1)
    each = 8 // data.element_size() if data.element_size() <= 8 else 1
    total = torch.zeros((), dtype=torch.int64, device=data.device)
    if not len(data):
        return total
    head = min(-start % each, len(data))  # elements of a word that another stretch begins
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
    """Sum of words times the factors of their places, the first one's being ``first``."""
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
