"""Documents as stretches of stored tokens, and what happens to those that are too long or empty."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

from hooktrain import DataError
from hooktrain_sft.config import OnEmpty, Overflow
from hooktrain_sft.data.arrow_store import Ids, Mask, MemoryStore, Piece, Store

__all__ = ["Documents", "TokenCount", "fit"]

Indices = NDArray[np.int64]


@attrs.frozen(eq=False)
class Documents:
    """Token sequences that do not see each other; each is a stretch of a piece of a store, which is not copied.

    Attributes:
        stores: where the tokens are.
        pieces: which piece each document is in, counted over all stores, shape (documents,).
        starts: where in that piece it begins, shape (documents,).
        lengths: how many tokens it has, shape (documents,).
        supervised: how many of them are trained, the first never, shape (documents,).
        rows: number of the row that it comes from, over all sources, shape (documents,).
        digests: a number for the row that it comes from, equal for equal tokens, shape (documents,).
    """

    stores: tuple[Store, ...]
    pieces: Indices
    starts: Indices
    lengths: Indices
    supervised: Indices
    rows: Indices
    digests: NDArray[np.uint64]
    _pieces: list[Piece] = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_pieces", [piece for store in self.stores for piece in store.pieces])

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> tuple[object, ...]:
        return tuple(getattr(self, item.name) for item in attrs.fields(Documents) if item.init)

    def __setstate__(self, state: tuple[object, ...]) -> None:
        names = [item.name for item in attrs.fields(Documents) if item.init]
        for name, value in zip(names, state, strict=True):
            object.__setattr__(self, name, value)
        self.__attrs_post_init__()

    def tokens(self, document: int) -> tuple[Ids, Mask]:
        """Ids and mask of a document, each of shape (tokens,); the mask is a copy, the ids are not."""
        piece = self._pieces[self.pieces[document]]
        start = int(self.starts[document])
        part = slice(start, start + int(self.lengths[document]))
        trained: Mask = piece.trained[part].copy()
        trained[:1] = False
        return piece.input_ids[part], trained

    def __iter__(self) -> Iterator[tuple[Ids, Mask]]:
        return (self.tokens(document) for document in range(len(self)))

    @classmethod
    def of_store(cls, store: Store) -> Documents:
        """A document for each row of a store."""
        pieces = store.pieces
        sizes = [len(piece.supervised) for piece in pieces]
        return cls(
            (store,),
            np.repeat(np.arange(len(pieces)), sizes),
            _joined([piece.offsets[:-1] for piece in pieces]),
            _joined([np.diff(piece.offsets) for piece in pieces]),
            _joined([piece.supervised for piece in pieces]),
            np.arange(sum(sizes)),
            np.concatenate([piece.digests for piece in pieces]) if pieces else np.zeros(0, np.uint64),
        )

    @classmethod
    def of(cls, encoded: Iterable[tuple[Ids, Mask]]) -> Documents:
        """From ids and mask of each row in turn, kept in memory."""
        pairs = list(encoded)
        lengths = np.array([len(ids) for ids, _ in pairs], np.int64)
        ids = np.concatenate([ids for ids, _ in pairs]) if pairs else np.zeros(0, np.int32)
        trained = np.concatenate([mask for _, mask in pairs]) if pairs else np.zeros(0, np.bool_)
        return cls.of_flat(ids, trained, lengths)

    @classmethod
    def of_flat(cls, ids: Ids, trained: Mask, lengths: Indices) -> Documents:
        """From the ids and masks of all rows end to end, and how many tokens each has."""
        return cls.of_store(MemoryStore([Piece.of(ids, trained, lengths)]))

    @classmethod
    def join(cls, parts: Sequence[Documents]) -> Documents:
        """One after the other; rows are numbered on."""
        pieces = np.cumsum([0, *(len(part._pieces) for part in parts)])
        rows = np.cumsum([0, *(int(part.rows.max(initial=-1)) + 1 for part in parts)])
        return cls(
            tuple(store for part in parts for store in part.stores),
            _joined([part.pieces + first for part, first in zip(parts, pieces, strict=False)]),
            _joined([part.starts for part in parts]),
            _joined([part.lengths for part in parts]),
            _joined([part.supervised for part in parts]),
            _joined([part.rows + first for part, first in zip(parts, rows, strict=False)]),
            np.concatenate([part.digests for part in parts]),
        )

    def select(self, documents: Indices) -> Documents:
        """These documents only; one that is named twice is there twice."""
        return Documents(
            self.stores,
            self.pieces[documents],
            self.starts[documents],
            self.lengths[documents],
            self.supervised[documents],
            self.rows[documents],
            self.digests[documents],
        )

    def cut(self, documents: Indices, skipped: Indices, lengths: Indices) -> Documents:
        """New documents, each ``lengths`` tokens of one of ``documents`` after the first ``skipped``; shapes (new,)."""
        starts = self.starts[documents] + skipped
        changed = (skipped > 0) | (lengths < self.lengths[documents])
        supervised = self.supervised[documents]
        pieces = self.pieces[documents]
        for number in np.unique(pieces[changed]):
            some = np.flatnonzero(changed & (pieces == number))
            counted = np.concatenate([[0], np.cumsum(self._pieces[number].trained, dtype=np.int64)])
            ends = starts[some] + lengths[some]
            supervised[some] = counted[ends] - counted[np.minimum(starts[some] + 1, ends)]
        return Documents(
            self.stores, pieces, starts, lengths, supervised, self.rows[documents], self.digests[documents]
        )

    def digest(self) -> str:
        """Text that is equal for equal documents in equal order."""
        made = hashlib.blake2b(digest_size=16)
        for store in self.stores:
            made.update(store.digest.encode())
        for array in (self.pieces, self.starts, self.lengths):
            made.update(np.ascontiguousarray(array).data)
        return made.hexdigest()


def _joined(arrays: Sequence[Indices]) -> Indices:
    return np.concatenate(arrays).astype(np.int64) if len(arrays) else np.zeros(0, np.int64)


@attrs.define
class TokenCount:
    """What became of the tokens of a set: ``tokens_in`` is the sum of kept, dropped and truncated ones.

    Attributes:
        rows_in: rows that the sources have.
        rows_kept: rows of which something is left.
        rows_too_long: rows longer than ``max_length``.
        rows_empty: rows in which nothing is trained.
        rows_answer_cut: rows that are kept and have lost trained tokens.
        longest: tokens of the longest row, before anything was cut.
        tokens_in: tokens of all rows.
        tokens_kept: tokens that are trained with.
        tokens_dropped: tokens of rows, and of pieces of split rows, that were left out as a whole.
        tokens_truncated: tokens behind ``max_length`` in rows that are kept up to there.
        tokens_trained: kept tokens that carry a loss.
    """

    rows_in: int = 0
    rows_kept: int = 0
    rows_too_long: int = 0
    rows_empty: int = 0
    rows_answer_cut: int = 0
    longest: int = 0
    tokens_in: int = 0
    tokens_kept: int = 0
    tokens_dropped: int = 0
    tokens_truncated: int = 0
    tokens_trained: int = 0


def fit(
    documents: Documents, max_length: int, overflow: Overflow, on_empty: OnEmpty, where: str
) -> tuple[Documents, TokenCount]:
    """Apply ``overflow`` and ``on_empty``.

    Args:
        documents: one for each row.
        max_length: tokens that a document may have.
        overflow: what to do with longer ones.
        on_empty: what to do with those in which nothing is trained.
        where: name of the set, for errors.

    Raises:
        DataError: where the recipe says that a row is an error, and when none is left.
    """
    lengths = documents.lengths
    long = lengths > max_length
    count = TokenCount(rows_in=len(documents), rows_too_long=int(long.sum()), tokens_in=int(lengths.sum()))
    count.longest = int(lengths.max()) if len(lengths) else 0
    if count.rows_too_long and overflow == "error":
        raise DataError(
            f"{where}: {count.rows_too_long} of {len(documents)} rows are longer than max_length {max_length}, the"
            f" longest has {count.longest} tokens; write `data.max_length: {count.longest}`, or `data.overflow:` drop,"
            " truncate or split"
        )
    empty_before = documents.supervised == 0
    if overflow == "drop":
        fitted = documents.select(np.flatnonzero(~long))
        count.tokens_dropped += int(lengths[long].sum())
    elif overflow == "split":
        pieces = np.maximum(-(-lengths // max_length), 1)
        source = np.repeat(np.arange(len(documents)), pieces)
        number = np.arange(len(source)) - np.repeat(np.cumsum(pieces) - pieces, pieces)  # 0, 1, ... in each row
        starts = number * max_length
        kept = np.minimum(lengths[source] - starts, max_length)
        fitted = documents.cut(source, starts, kept)
    else:
        count.tokens_truncated = int(np.maximum(lengths - max_length, 0).sum())
        everyone = np.arange(len(documents))
        fitted = documents.cut(everyone, np.zeros_like(lengths), np.minimum(lengths, max_length))
    empty = fitted.supervised == 0
    # a piece of a split row without supervised tokens is no mistake; a row that has none at all is one
    has_some = np.zeros(int(documents.rows.max()) + 1 if len(documents) else 0, np.bool_)
    has_some[fitted.rows[~empty]] = True
    empty_rows = np.unique(fitted.rows[~has_some[fitted.rows]])
    count.rows_empty = len(empty_rows)
    if len(empty_rows) and on_empty == "error":
        cut = int((~empty_before[np.isin(documents.rows, empty_rows)]).sum())
        raise DataError(
            f"{where}: in {len(empty_rows)} of {len(documents)} rows no token is trained, the first is row"
            f" {int(empty_rows[0])}"
            + (f" ({cut} of them because max_length {max_length} cuts off what is)" if cut else "")
            + ("; raise `data.max_length`" if cut else "; look at it with `hooktrain data`, correct the row")
            + ", or write `data.on_empty: drop` to leave them out"
        )
    count.tokens_dropped += int(fitted.lengths[empty].sum())
    if empty.any():
        # what was cut off a row that is then left out is lost with it, but still counted as truncated
        fitted = fitted.select(np.flatnonzero(~empty))
    if not len(fitted):
        raise DataError(
            f"{where}: none of the {len(documents)} rows is left, {count.rows_too_long} were longer than max_length"
            f" {max_length} and {count.rows_empty} had no trained token; change the data or `data.max_length`"
        )
    count.rows_kept = len(np.unique(fitted.rows))
    count.tokens_kept = int(fitted.lengths.sum())
    count.tokens_trained = int(fitted.supervised.sum())
    count.rows_answer_cut = _answers_cut(documents, fitted)
    return fitted, count


def _answers_cut(before: Documents, after: Documents) -> int:
    """Rows of ``after`` that have fewer trained tokens than in ``before``."""
    size = int(before.rows.max(initial=-1)) + 1
    had = np.bincount(before.rows, before.supervised, size)
    has = np.bincount(after.rows, after.supervised, size)
    return int(((has > 0) & (has < had)).sum())
