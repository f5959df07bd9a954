"""Documents of stored tokens, and the handling of those that are too long or empty."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import attrs
import numpy as np
from numpy.typing import NDArray

from hooktrain import DataError
from hooktrain_sft.config import OnEmpty, Overflow
from hooktrain_sft.data.arrow_store import Ids, Mask, MemoryStore, Piece, Store

__all__ = ["Documents", "Place", "TokenCount", "fit", "require_some"]

Indices = NDArray[np.int64]


@attrs.frozen(eq=False)
class Documents:
    """Token sequences that do not see each other; each refers to a part of a store's piece.

    Attributes:
        stores: stores of the tokens.
        pieces: number of each document's piece, counted over all stores, shape (documents,).
        starts: start of the document in its piece, shape (documents,).
        lengths: number of its tokens, shape (documents,).
        supervised: number of its trained tokens, shape (documents,).
        examples: number of the example that it comes from, over all sources, shape (documents,).
        digests: a number for that example, equal for equal tokens, shape (documents,).
    """

    stores: tuple[Store, ...]
    pieces: Indices
    starts: Indices
    lengths: Indices
    supervised: Indices
    examples: Indices
    digests: NDArray[np.uint64]
    _pieces: list[tuple[Store, int]] = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        pieces = [(store, number) for store in self.stores for number in range(len(store.pieces))]
        object.__setattr__(self, "_pieces", pieces)

    def __len__(self) -> int:
        return len(self.examples)

    def __reduce__(self) -> tuple[Any, ...]:
        return Documents, attrs.astuple(self, recurse=False, filter=lambda field, _: field.init)

    def piece(self, number: int) -> Piece:
        """Return a piece of the stores with its tokens, verified where it comes from a file."""
        store, index = self._pieces[number]
        return store.piece(index)

    def tokens(self, document: int) -> tuple[Ids, Mask]:
        """Return ids and mask of a document, each of shape (tokens,); the mask is a copy, the ids are not."""
        piece = self.piece(self.pieces[document])
        start = int(self.starts[document])
        part = slice(start, start + int(self.lengths[document]))
        trained: Mask = piece.trained[part].copy()
        trained[:1] = False
        return piece.input_ids[part], trained

    def __iter__(self) -> Iterator[tuple[Ids, Mask]]:
        return (self.tokens(document) for document in range(len(self)))

    @classmethod
    def of_store(cls, store: Store, sequences: Sequence[int] | None = None) -> Documents:
        """Make a document of each sequence of a store.

        Args:
            store: the store.
            sequences: number of sequences of each example; one by default.
        """
        pieces = store.pieces
        sizes = [len(piece.supervised) for piece in pieces]
        return cls(
            (store,),
            np.repeat(np.arange(len(pieces)), sizes),
            _joined([piece.offsets[:-1] for piece in pieces]),
            _joined([np.diff(piece.offsets) for piece in pieces]),
            _joined([piece.supervised for piece in pieces]),
            np.arange(sum(sizes)) if sequences is None else np.repeat(np.arange(len(sequences)), sequences),
            np.concatenate([piece.digests for piece in pieces]) if pieces else np.zeros(0, np.uint64),
        )

    @classmethod
    def of(cls, encoded: Iterable[tuple[Ids, Mask]]) -> Documents:
        """Make documents in memory from the ids and mask of each."""
        pairs = list(encoded)
        lengths = np.array([len(ids) for ids, _ in pairs], np.int64)
        ids = np.concatenate([ids for ids, _ in pairs]) if pairs else np.zeros(0, np.int32)
        trained = np.concatenate([mask for _, mask in pairs]) if pairs else np.zeros(0, np.bool_)
        return cls.of_flat(ids, trained, lengths)

    @classmethod
    def of_flat(cls, ids: Ids, trained: Mask, lengths: Indices) -> Documents:
        """Make documents in memory from flat ids and masks, and the number of tokens of each."""
        return cls.of_store(MemoryStore([Piece.of(ids, trained, lengths)]))

    @classmethod
    def join(cls, parts: Sequence[Documents]) -> Documents:
        """Concatenate documents; examples are numbered consecutively."""
        pieces = np.cumsum([0, *(sum(len(store.pieces) for store in part.stores) for part in parts)])
        examples = np.cumsum([0, *(int(part.examples.max(initial=-1)) + 1 for part in parts)])
        return cls(
            tuple(store for part in parts for store in part.stores),
            _joined([part.pieces + first for part, first in zip(parts, pieces, strict=False)]),
            _joined([part.starts for part in parts]),
            _joined([part.lengths for part in parts]),
            _joined([part.supervised for part in parts]),
            _joined([part.examples + first for part, first in zip(parts, examples, strict=False)]),
            np.concatenate([part.digests for part in parts]),
        )

    def select(self, documents: Indices) -> Documents:
        """Return these documents only; an index that is there twice selects the document twice."""
        fields = attrs.asdict(self, recurse=False, filter=lambda field, _: field.init and field.name != "stores")
        return Documents(self.stores, **{name: array[documents] for name, array in fields.items()})

    def cut(self, documents: Indices, skipped: Indices, lengths: Indices) -> Documents:
        """Cut ``lengths`` tokens of ``documents`` after the first ``skipped``, of shape (new,)."""
        starts = self.starts[documents] + skipped
        changed = (skipped > 0) | (lengths < self.lengths[documents])
        supervised = self.supervised[documents]
        pieces = self.pieces[documents]
        for number in np.unique(pieces[changed]):
            some = np.flatnonzero(changed & (pieces == number))
            counted = np.concatenate([[0], np.cumsum(self.piece(number).trained.astype(np.bool_), dtype=np.int64)])
            ends = starts[some] + lengths[some]
            supervised[some] = counted[ends] - counted[np.minimum(starts[some] + 1, ends)]
        return Documents(
            self.stores, pieces, starts, lengths, supervised, self.examples[documents], self.digests[documents]
        )

    def digest(self) -> str:
        """Return a text that is equal for equal documents in equal order."""
        made = hashlib.blake2b(digest_size=16)
        for store in self.stores:
            made.update(store.digest.encode())
        for array in (self.pieces, self.starts, self.lengths):
            made.update(np.ascontiguousarray(array).data)
        return made.hexdigest()


def _joined(arrays: Sequence[Indices]) -> Indices:
    return np.concatenate(arrays).astype(np.int64) if len(arrays) else np.zeros(0, np.int64)


class Place(NamedTuple):
    """An example of a source."""

    label: str
    number: int

    def __str__(self) -> str:
        return f"{self.label}, example {self.number}" if self.label else f"example {self.number}"

    @property
    def command(self) -> str:
        """The command that shows it."""
        return f"`hooktrain data RECIPE --show {self.number + 1}`"


@attrs.define
class TokenCount:
    """Counts of a set's examples and tokens: ``tokens_in`` is the sum of kept, dropped and truncated ones.

    Attributes:
        rows_in: examples of the sources.
        rows_kept: examples of which some tokens are kept.
        rows_too_long: examples longer than ``max_length``, where these are not split.
        rows_split: longer examples that are split into several sequences.
        rows_empty: examples in which no token is trained.
        rows_cut: kept examples that have lost trained tokens at their end.
        longest: tokens of the longest example, before anything was cut.
        tokens_in: tokens of all examples.
        tokens_kept: tokens of the set after dropping and truncating.
        tokens_dropped: tokens of dropped examples, and of dropped pieces of split ones.
        tokens_truncated: tokens after ``max_length`` in truncated examples.
        tokens_trained: kept tokens that carry a loss.
    """

    rows_in: int = 0
    rows_kept: int = 0
    rows_too_long: int = 0
    rows_split: int = 0
    rows_empty: int = 0
    rows_cut: int = 0
    longest: int = 0
    tokens_in: int = 0
    tokens_kept: int = 0
    tokens_dropped: int = 0
    tokens_truncated: int = 0
    tokens_trained: int = 0

    def __add__(self, other: TokenCount) -> TokenCount:
        ours, theirs = attrs.asdict(self), attrs.asdict(other)
        longest = max(self.longest, other.longest)
        return TokenCount(**{**{name: ours[name] + theirs[name] for name in ours}, "longest": longest})


def fit(
    documents: Documents,
    max_length: int,
    overflow: Overflow,
    on_empty: OnEmpty,
    where: str,
    *,
    max_dropped: float = 0.1,
    before: TokenCount | None = None,
    at_least: int = 0,
    name: Callable[[int], Place] = lambda example: Place("", example),
    positions: int | None = None,
    together: bool = False,
    untrained: str = "no token is trained",
) -> tuple[Documents, TokenCount]:
    """Apply ``overflow`` and ``on_empty``.

    Args:
        documents: one for each example.
        max_length: most tokens of a document.
        overflow: handling of longer ones.
        on_empty: handling of those in which no token is trained.
        where: name of the set, for errors.
        max_dropped: largest share of the set's examples that ``auto`` drops.
        before: counts of earlier documents of the same set, with which that share is judged.
        at_least: number of examples by which it is judged, where there are fewer so far.
        name: names an example, for errors.
        positions: tokens for which the model has positions, where that limits them.
        together: whether an example is dropped with all of its documents where one of them is too long or has no
            trained token; ``overflow`` is neither ``truncate`` nor ``split`` then.
        untrained: what is wrong with an example that ``on_empty`` is about, for errors.

    Returns:
        The documents, none where all are dropped, and the counts of this call.

    Raises:
        DataError: when an example is an error by these options.
    """
    lengths = documents.lengths
    long = _of_examples(documents, lengths > max_length, together)
    rows_in, rows_long = (len(np.unique(documents.examples[some])) for some in (slice(None), long))
    counted_as = {"rows_split" if overflow == "split" else "rows_too_long": rows_long}
    count = TokenCount(rows_in=rows_in, tokens_in=int(lengths.sum()), **counted_as)
    count.longest = int(lengths.max()) if len(lengths) else 0
    if count.rows_too_long and overflow == "error":
        raise DataError(f"{where}: {_too_long(count, max_length, positions, together)}")
    if overflow in ("auto", "drop"):
        fitted = documents.select(np.flatnonzero(~long))
        count.tokens_dropped += int(lengths[long].sum())
    elif overflow == "split":
        pieces = np.maximum(-(-lengths // max_length), 1)
        source = np.repeat(np.arange(len(documents)), pieces)
        number = np.arange(len(source)) - np.repeat(np.cumsum(pieces) - pieces, pieces)  # 0, 1, ... in each example
        starts = number * max_length
        kept = np.minimum(lengths[source] - starts, max_length)
        fitted = documents.cut(source, starts, kept)
    else:
        count.tokens_truncated = int(np.maximum(lengths - max_length, 0).sum())
        all_of_them = np.arange(len(documents))
        fitted = documents.cut(all_of_them, np.zeros_like(lengths), np.minimum(lengths, max_length))
    empty = _of_examples(fitted, fitted.supervised == 0, together)
    # a piece of a split example may have no trained tokens; an example must have some
    has_some = np.zeros(int(documents.examples.max()) + 1 if len(documents) else 0, np.bool_)
    has_some[fitted.examples[~empty]] = True
    empty_examples = np.unique(fitted.examples[~has_some[fitted.examples]])
    count.rows_empty = len(empty_examples)

    def no_token_trained(total: TokenCount) -> str:
        trained = documents.supervised[np.isin(documents.examples, empty_examples)] > 0
        cut = 0 if together else int(trained.sum())
        first = name(int(empty_examples[0])) if len(empty_examples) else Place("", 2)
        return (
            f"in {total.rows_empty:,} of {total.rows_in:,} examples {untrained}"
            + (f", the first is {first}" if len(empty_examples) else "")
            + (f" ({cut:,} of them because max_length {max_length} cuts off the trained part)" if cut else "")
            + ("; raise `data.max_length`" if cut else f"; look at it with {first.command}, correct the example")
            + (
                ", or write `data.on_empty: drop` to drop them"
                if total.rows_empty < total.rows_in
                else "; `data.on_empty: drop` would leave none; name the answers with `data.columns` or"
                " `data.role_mapping`"
            )
        )

    if len(empty_examples) and on_empty == "error":
        raise DataError(f"{where}: {no_token_trained(count)}")
    total = count if before is None else before + count
    dropped = (total.rows_too_long if overflow == "auto" else 0) + (total.rows_empty if on_empty == "auto" else 0)
    if dropped > max_dropped * max(total.rows_in, at_least) + 1e-9:
        said = [_too_long(total, max_length, positions, together)] if overflow == "auto" and total.rows_too_long else []
        said += [no_token_trained(total)] if on_empty == "auto" and total.rows_empty else []
        raise DataError(
            f"{where}: {'; '.join(said)}; without a written `drop`, at most {max_dropped:.4g} of the examples"
            " (`data.max_dropped`) are dropped"
        )
    count.tokens_dropped += int(fitted.lengths[empty].sum())
    if empty.any():
        # tokens cut off a dropped example stay counted as truncated
        fitted = fitted.select(np.flatnonzero(~empty))
    count.rows_kept = len(np.unique(fitted.examples))
    count.tokens_kept = int(fitted.lengths.sum())
    count.tokens_trained = int(fitted.supervised.sum())
    if overflow == "truncate":
        count.rows_cut = _cut(documents, fitted)
    return fitted, count


def _of_examples(documents: Documents, some: NDArray[np.bool_], together: bool) -> NDArray[np.bool_]:
    """Return the mask of some documents, with ``together`` also of all others of their examples."""
    return np.isin(documents.examples, documents.examples[some]) if together else some


def require_some(count: TokenCount, max_length: int, where: str) -> None:
    """Raise a ``DataError`` when no example of a set is left."""
    if not count.rows_kept:
        raise DataError(
            f"{where}: none of the {count.rows_in:,} examples is left, {count.rows_too_long + count.rows_split:,} were"
            f" longer than max_length {max_length} and {count.rows_empty:,} had no trained token; change the data or"
            " `data.max_length`"
        )


def _too_long(count: TokenCount, max_length: int, positions: int | None, together: bool) -> str:
    choices = "drop" if together else "drop, truncate or split"
    if positions == max_length:
        return (
            f"{count.rows_too_long:,} of {count.rows_in:,} examples are longer than the {positions} tokens for which"
            f" the model has positions (longest: {count.longest} tokens); choose `data.overflow:` {choices}, or"
            " another model"
        )
    return (
        f"{count.rows_too_long:,} of {count.rows_in:,} examples are longer than data.max_length {max_length} (longest:"
        f" {count.longest} tokens); set `data.max_length: {count.longest}`, or choose `data.overflow:`"
        f" {choices}"
    )


def _cut(before: Documents, after: Documents) -> int:
    """Count the examples of ``after`` that have fewer trained tokens than in ``before``."""
    size = int(before.examples.max(initial=-1)) + 1
    had = np.bincount(before.examples, before.supervised, size)
    has = np.bincount(after.examples, after.supervised, size)
    return int(((has > 0) & (has < had)).sum())
