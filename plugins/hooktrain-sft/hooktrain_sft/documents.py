"""Documents in flat arrays, and what happens to those that are too long or empty."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

from hooktrain import DataError
from hooktrain_sft.config import OnEmpty, Overflow

__all__ = ["Documents", "TokenCount", "fit"]

Indices = NDArray[np.int64]


@attrs.frozen(eq=False)
class Documents:
    """Token sequences that do not see each other, stored end to end.

    Attributes:
        input_ids: all tokens, shape (tokens,).
        trained: which of them carry a loss, shape (tokens,); the first of a document never does.
        offsets: where each document begins, and the end, shape (documents + 1,).
        rows: number of the row that each document comes from, over all sources, shape (documents,).
    """

    input_ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    offsets: Indices
    rows: Indices

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> Indices:
        """Tokens of each document, shape (documents,)."""
        return np.diff(self.offsets)

    @property
    def trained_counts(self) -> Indices:
        """Trained tokens of each document, shape (documents,)."""
        total = np.concatenate([[0], np.cumsum(self.trained, dtype=np.int64)])
        return np.diff(total[self.offsets])

    @classmethod
    def of(cls, encoded: Iterable[tuple[NDArray[np.int32], NDArray[np.bool_]]]) -> Documents:
        """From ids and mask of each row in turn."""
        pairs = list(encoded)
        offsets = np.zeros(len(pairs) + 1, np.int64)
        np.cumsum([len(ids) for ids, _ in pairs], out=offsets[1:])
        ids = np.concatenate([ids for ids, _ in pairs]) if pairs else np.zeros(0, np.int32)
        trained = np.concatenate([mask for _, mask in pairs]) if pairs else np.zeros(0, np.bool_)
        return cls(ids, _first_untrained(trained, offsets), offsets, np.arange(len(pairs)))

    @classmethod
    def join(cls, parts: Sequence[Documents]) -> Documents:
        """One after the other; rows are numbered on."""
        starts = np.concatenate([[0], np.cumsum([len(part.input_ids) for part in parts])])
        rows = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
        return cls(
            np.concatenate([part.input_ids for part in parts]),
            np.concatenate([part.trained for part in parts]),
            np.concatenate(
                [*(part.offsets[:-1] + start for part, start in zip(parts, starts, strict=False)), starts[-1:]]
            ),
            np.concatenate([part.rows + row for part, row in zip(parts, rows, strict=False)]),
        )

    def select(self, documents: Indices) -> Documents:
        """These documents only."""
        return self.cut(documents, self.offsets[documents], self.lengths[documents])

    def cut(self, documents: Indices, starts: Indices, lengths: Indices) -> Documents:
        """New documents of ``lengths`` tokens from ``starts`` on, each out of one of ``documents``; shapes (new,)."""
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        if len(documents) == len(self) and offsets[-1] == self.offsets[-1] and bool((np.diff(starts) >= 0).all()):
            return Documents(self.input_ids, self.trained, offsets, self.rows[documents])  # all there, in order
        positions = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
        trained = _first_untrained(self.trained[positions], offsets)
        return Documents(self.input_ids[positions], trained, offsets, self.rows[documents])

    def digest(self) -> str:
        """Text that is equal exactly when all the documents are."""
        made = hashlib.blake2b(digest_size=16)
        for array in (self.input_ids, self.trained, self.offsets):
            made.update(np.ascontiguousarray(array).data)
        return made.hexdigest()


def _first_untrained(trained: NDArray[np.bool_], offsets: Indices) -> NDArray[np.bool_]:
    """The mask without the first token of each document, which nothing comes before that could predict it."""
    made: NDArray[np.bool_] = trained.copy()
    made[offsets[:-1][np.diff(offsets) > 0]] = False
    return made


@attrs.define
class TokenCount:
    """What became of the tokens of a set: ``tokens_in`` is the sum of kept, dropped and truncated ones.

    Attributes:
        rows_in: rows that the sources have.
        rows_kept: rows of which something is left.
        rows_too_long: rows longer than ``max_length``.
        rows_empty: rows in which nothing is trained.
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
    empty_before = documents.trained_counts == 0
    if overflow == "drop":
        fitted = documents.select(np.flatnonzero(~long))
        count.tokens_dropped += int(lengths[long].sum())
    elif overflow == "split":
        pieces = np.maximum(-(-lengths // max_length), 1)
        source = np.repeat(np.arange(len(documents)), pieces)
        number = np.arange(len(source)) - np.repeat(np.cumsum(pieces) - pieces, pieces)  # 0, 1, ... in each row
        starts = number * max_length
        kept = np.minimum(lengths[source] - starts, max_length)
        fitted = documents.cut(source, documents.offsets[source] + starts, kept)
    else:
        count.tokens_truncated = int(np.maximum(lengths - max_length, 0).sum())
        fitted = documents.cut(np.arange(len(documents)), documents.offsets[:-1], np.minimum(lengths, max_length))
    empty = fitted.trained_counts == 0
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
            + "; raise `data.max_length`, or write `data.on_empty: drop` to leave them out"
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
    count.tokens_kept = int(fitted.offsets[-1])
    count.tokens_trained = int(fitted.trained.sum())
    return fitted, count
