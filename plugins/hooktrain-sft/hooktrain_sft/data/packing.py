"""Bin packing of a data set: best-fit-decreasing, and a closer fit where there are few documents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import attrs
import numpy as np
from numpy.typing import ArrayLike, NDArray

from hooktrain import DataError

__all__ = ["Bins", "best_fit_decreasing", "check_bins", "pack"]

Indices = NDArray[np.int64]


@attrs.frozen(eq=False)
class Bins:
    """Documents grouped into bins.

    Attributes:
        order: indices of documents, bin after bin, shape (documents,).
        offsets: start of each bin in ``order``, and the end, shape (bins + 1,).
    """

    order: Indices
    offsets: Indices

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Indices:
        """Return the indices of the documents in a bin."""
        return self.order[self.offsets[index] : self.offsets[index + 1]]

    def digest(self) -> str:
        """Return a text that is equal exactly when the bins are."""
        return hashlib.blake2b(self.order.tobytes() + self.offsets.tobytes(), digest_size=16).hexdigest()

    @classmethod
    def of(cls, bins: Bins | Iterable[Sequence[int]]) -> Bins:
        """Make bins from a list of lists of document indices."""
        if isinstance(bins, Bins):
            return bins
        arrays = [np.asarray(documents, np.int64) for documents in bins]
        offsets = np.zeros(len(arrays) + 1, np.int64)
        np.cumsum([len(array) for array in arrays], out=offsets[1:])
        return cls(np.concatenate(arrays) if arrays else np.zeros(0, np.int64), offsets)


_FEW = 20_000
"""Documents up to which the closer fit is tried; with more, best-fit-decreasing leaves hardly any room."""


def pack(lengths: ArrayLike, max_length: int) -> Bins:
    """Pack documents into as few bins as can be found quickly.

    Args:
        lengths: tokens of each document, from 1 to ``max_length``, shape (documents,).
        max_length: tokens that a bin holds.

    Raises:
        ValueError: when a document is empty or does not fit into a bin.
    """
    sizes = np.asarray(lengths, np.int64)
    bins = best_fit_decreasing(sizes, max_length)
    least = -(-int(sizes.sum()) // max_length)
    for prefer_short in (False, True):  # neither is always the better one
        if len(sizes) <= _FEW and len(bins) > least:
            closer = fill_one_by_one(sizes, max_length, prefer_short)
            bins = min(bins, closer, key=len)
    return bins


def fill_one_by_one(lengths: ArrayLike, max_length: int, prefer_short: bool = False) -> Bins:
    """Fill one bin after the other, each with the longest document left and those that fit best with it.

    The possible sums of lengths are a set of bits, shifted once for each power of two of documents of one length, so
    that a bin takes as many steps as there are distinct lengths.

    Args:
        lengths: tokens of each document, from 1 to ``max_length``, shape (documents,).
        max_length: tokens that a bin holds.
        prefer_short: whether short documents are used first to fill a bin; otherwise long ones.
    """
    sizes = np.asarray(lengths, np.int64)
    distinct, counts = np.unique(sizes, return_counts=True)
    left = dict(zip(distinct.tolist(), counts.tolist(), strict=True))
    documents = {int(length): np.flatnonzero(sizes == length).tolist()[::-1] for length in distinct}
    bin_of = np.empty(len(sizes), np.int64)
    bins = 0
    while left:
        chosen = {max(left): 1}
        left[max(left)] -= 1
        for length, times in best_sum(left, max_length - max(left), prefer_short).items():
            chosen[length] = chosen.get(length, 0) + times
            left[length] -= times
        left = {length: count for length, count in left.items() if count}
        for length, times in chosen.items():
            for _ in range(times):
                bin_of[documents[length].pop()] = bins
        bins += 1
    return _collect(bin_of, bins)


def best_sum(counts: dict[int, int], room: int, prefer_short: bool) -> dict[int, int]:
    """Return the number of documents of each length that make the largest sum not above ``room``."""
    within = (1 << (room + 1)) - 1
    steps: list[tuple[int, int, int]] = []  # length, how many at once, the sums before
    sums = 1
    for length in sorted(counts):
        count, many = min(counts[length], room // length), 1
        while count:
            many = min(many, count)
            steps.append((length, many, sums))
            sums |= (sums << (length * many)) & within
            count, many = count - many, many * 2
        if sums == within or (prefer_short and sums >> room & 1):
            break  # longer documents would not fill the bin any better
    rest = sums.bit_length() - 1
    chosen: dict[int, int] = {}
    for length, many, before in reversed(steps):
        if rest >= length * many and before >> (rest - length * many) & 1:
            chosen[length] = chosen.get(length, 0) + many
            rest -= length * many
    return chosen


def best_fit_decreasing(lengths: ArrayLike, max_length: int) -> Bins:
    """Pack documents into bins: longest first, each where it leaves the least room.

    Documents of one length are handled together, and so are bins with equal room. So the work grows with the number of
    distinct lengths and rooms, not with documents times bins. The result depends on the arguments only; bins are in the
    order of their first documents.

    Args:
        lengths: tokens of each document, from 1 to ``max_length``, shape (documents,).
        max_length: tokens that a bin holds.

    Raises:
        ValueError: when a document is empty or does not fit into a bin.
    """
    sizes = np.asarray(lengths, np.int64)
    if len(sizes) == 0:
        return Bins(np.zeros(0, np.int64), np.zeros(1, np.int64))
    if sizes.min() < 1 or sizes.max() > max_length:
        raise ValueError(f"given lengths from {sizes.min()} to {sizes.max()}, expected 1 to {max_length}")
    by_length = np.argsort(-sizes, kind="stable")
    distinct, counts = np.unique(sizes, return_counts=True)
    bin_of = np.empty(len(sizes), np.int64)
    rooms = _Rooms(max_length)
    bins = placed = 0
    for length, count in zip(distinct[::-1].tolist(), counts[::-1].tolist(), strict=True):
        left = count
        while left:
            room = rooms.tightest(length)
            if room is None:
                # new bins behave like open ones with all their room
                room = max_length
                wanted = -(-left // (room // length))
                chosen = np.arange(bins, bins + wanted)
                bins += wanted
            else:
                chosen = rooms.take(room, -(-left // (room // length)))
            each = room // length
            # a bin stays the tightest until the length no longer fits: it is filled before the next is touched
            full = min(len(chosen), left // each)
            bin_of[by_length[placed : placed + full * each]] = np.repeat(chosen[:full], each)
            rooms.put(room - each * length, chosen[:full])
            placed += full * each
            left -= full * each
            if full < len(chosen):  # the rest goes into one more bin and does not fill it
                bin_of[by_length[placed : placed + left]] = chosen[full]
                rooms.put(room - left * length, chosen[full : full + 1])
                placed += left
                left = 0
    return _collect(bin_of, bins)


class _Rooms:
    """Open bins by their remaining room."""

    def __init__(self, max_length: int) -> None:
        self._present = bytearray(max_length + 1)  # find() on it is fast
        self._bins: dict[int, list[Indices]] = {}

    def tightest(self, length: int) -> int | None:
        room = self._present.find(1, length)
        return None if room < 0 else room

    def put(self, room: int, bins: Indices) -> None:
        if room and len(bins):
            self._bins.setdefault(room, []).append(bins)
            self._present[room] = 1

    def take(self, room: int, most: int) -> Indices:
        """Remove and return up to ``most`` bins with exactly this room."""
        stack, taken = self._bins[room], []
        while stack and most:
            bins = stack.pop()
            taken.append(bins[:most])
            if len(bins) > most:
                stack.append(bins[most:])
            most -= len(taken[-1])
        if not stack:
            del self._bins[room]
            self._present[room] = 0
        return np.concatenate(taken)


def _collect(bin_of: Indices, bins: int) -> Bins:
    """Group documents by bin, bins in the order of their first documents."""
    first = np.full(bins, len(bin_of), np.int64)
    np.minimum.at(first, bin_of, np.arange(len(bin_of)))
    rank = np.empty(bins, np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(bins)
    renumbered = rank[bin_of]
    offsets = np.zeros(bins + 1, np.int64)
    np.cumsum(np.bincount(renumbered, minlength=bins), out=offsets[1:])
    return Bins(np.argsort(renumbered, kind="stable"), offsets)


def check_bins(bins: Bins, lengths: Indices, max_length: int) -> None:
    """Check that a packing neither loses nor repeats a document nor overfills a bin.

    Raises:
        DataError: when it does.
    """
    seen = np.bincount(bins.order, minlength=len(lengths)) if len(bins.order) else np.zeros(len(lengths), np.int64)
    if len(seen) > len(lengths):
        raise DataError(
            f"pack_sequences put document {len(seen) - 1} into a bin, but there are {len(lengths)}; fix the plugin that"
            " packs"
        )
    if (seen != 1).any():
        wrong = int(np.flatnonzero(seen != 1)[0])
        raise DataError(
            f"pack_sequences put document {wrong} into {int(seen[wrong])} bins, expected every document in exactly one;"
            " fix the plugin that packs"
        )
    filled = np.diff(np.concatenate([[0], np.cumsum(lengths[bins.order])])[bins.offsets])
    if len(filled) and filled.max() > max_length:
        raise DataError(
            f"pack_sequences filled bin {int(filled.argmax())} with {int(filled.max())} tokens, expected at most"
            f" {max_length}; fix the plugin that packs"
        )
