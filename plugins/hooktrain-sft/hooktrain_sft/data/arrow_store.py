"""Token sequences in memory-mapped Arrow files, so that a data set may be larger than the memory."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hooktrain import DataError

__all__ = [
    "Block",
    "DamagedError",
    "MemoryStore",
    "Piece",
    "Store",
    "StoreWriter",
    "TokenStore",
    "UnwritableError",
    "verify",
]

Ids = NDArray[np.int32]
Mask = NDArray[Any]
"""The tokens that carry a loss; or, where any of them weighs other than 1, their weights, 0 for those without."""

SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("trained", pa.list_(pa.uint8())),  # Arrow's own booleans are bits, which numpy cannot read in place
        ("weights", pa.list_(pa.float32())),  # a record batch has empty lists in this column, or in the one before
        ("supervised", pa.int32()),
        ("digest", pa.uint64()),
    ]
)

_PIECE_TOKENS = 1 << 20
"""Tokens of a record batch, which the writer holds in memory."""


class Piece(NamedTuple):
    """Consecutive sequences of a store in flat arrays.

    Attributes:
        input_ids: shape (tokens,).
        trained: mask of the tokens that carry a loss, or their weights, shape (tokens,).
        offsets: start of each sequence, and the end, shape (sequences + 1,).
        supervised: number of trained tokens of each sequence, shape (sequences,).
        digests: a number for each sequence, equal for equal ids, shape (sequences,).
    """

    input_ids: Ids
    trained: Mask
    offsets: NDArray[np.int64]
    supervised: NDArray[np.int64]
    digests: NDArray[np.uint64]

    @classmethod
    def of(cls, ids: Ids, trained: Mask, lengths: NDArray[np.int64]) -> Piece:
        """Make a piece from flat arrays; the first token of a sequence, which nothing predicts, is not trained."""
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        marked: Mask = trained.astype(np.float32 if trained.dtype.kind == "f" else np.bool_, copy=True)
        marked[offsets[:-1][lengths > 0]] = False
        counted = np.concatenate([[0], np.cumsum(marked.astype(np.bool_, copy=False), dtype=np.int64)])
        data, bounds = np.ascontiguousarray(ids, np.int32).view(np.uint8).data, (4 * offsets).tolist()
        digests = b"".join(
            hashlib.blake2b(data[begin:end], digest_size=8).digest() for begin, end in itertools.pairwise(bounds)
        )
        return cls(ids, marked, offsets, np.diff(counted[offsets]), np.frombuffer(digests, np.uint64))


class Block(NamedTuple):
    """Consecutive bytes of a file: those of a record batch, of the schema before the first, or of the end.

    Attributes:
        end: the place behind its last byte; it begins where the previous block ends.
        digest: of its bytes.
    """

    end: int
    digest: str


class DamagedError(OSError):
    """A file of tokens holds other bytes than were written."""


class UnwritableError(OSError):
    """A file of tokens cannot be written, as opposed to a source that cannot be read."""


class MemoryStore:
    """A store in memory."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self.pieces = tuple(pieces)
        self.digest = _digest(self.pieces)

    def piece(self, number: int) -> Piece:
        """Return a piece with its tokens."""
        return self.pieces[number]


class TokenStore:
    """A store in a memory-mapped Arrow file, whose blocks are verified when their tokens are first read.

    Attributes:
        pieces: the pieces; :meth:`piece` returns one of which the tokens may be read.
        digest: a text that is equal for equal sequences.

    Raises:
        DamagedError: when the file holds other bytes than were written.
    """

    def __init__(self, path: Path, digest: str, blocks: Sequence[Block], verified: bool = False) -> None:
        """Map the file; ``verified`` tells that its bytes have been compared with ``blocks`` already."""
        self.path, self.digest, self._blocks = path, digest, blocks
        self._bytes = pa.memory_map(str(path)).read_buffer()
        self._verified = np.full(len(blocks), verified)
        self._verify(len(blocks) - 1)
        try:
            reader: Any = pa.ipc.open_stream(self._bytes)
            if not reader.schema.equals(SCHEMA):
                raise DamagedError(f"{path}: given the columns {reader.schema.names}, expected {SCHEMA.names}")
            self.pieces = tuple(_mapped(batch) for batch in reader)
        except pa.ArrowException as problem:
            raise DamagedError(f"{path}: not a complete Arrow file ({problem})") from problem

    def piece(self, number: int) -> Piece:
        """Return a piece with its tokens.

        Raises:
            DataError: when it is damaged.
        """
        if not self._verified[number]:
            try:
                self._verify(number)
            except DamagedError as problem:
                with contextlib.suppress(OSError):
                    os.utime(self.path)  # so that the next run verifies the complete file
                raise DataError(
                    f"data.cache_dir: {problem}; start the run again, which prepares these examples again, or give"
                    " another folder if this one is not yours"
                ) from problem
        return self.pieces[number]

    def _verify(self, number: int) -> None:
        if not self._verified[number]:
            _verify_block(self.path, self._bytes, self._blocks, number)
            self._verified[number] = True

    def __reduce__(self) -> tuple[Any, ...]:
        # a worker process maps the file itself instead of receiving its contents
        return TokenStore, (self.path, self.digest, self._blocks, bool(self._verified.all()))


def verify(path: Path, blocks: Sequence[Block]) -> None:
    """Compare a file with the digests of its blocks.

    Raises:
        DamagedError: when a byte differs.
    """
    data = pa.memory_map(str(path)).read_buffer()
    with ThreadPoolExecutor() as pool:  # hashing runs outside the interpreter's lock
        for _ in pool.map(lambda number: _verify_block(path, data, blocks, number), range(len(blocks))):
            pass


def _verify_block(path: Path, data: Any, blocks: Sequence[Block], number: int) -> None:
    """Compare one block of a file's bytes with its digest.

    Raises:
        DamagedError: when a byte differs.
    """
    begin = blocks[number - 1].end if number else 0
    part = memoryview(data)[begin : blocks[number].end]
    if hashlib.sha256(part).hexdigest() != blocks[number].digest:
        raise DamagedError(f"'{path}' is damaged (block {number + 1} of {len(blocks)} differs from what was written)")


Store = MemoryStore | TokenStore


class StoreWriter:
    """Writer of sequences to an Arrow file that holds at most a record batch of them."""

    def __init__(self, path: Path) -> None:
        self._file = _HashedFile(path)
        self._writer = pa.ipc.new_stream(pa.PythonFile(self._file, "w"), SCHEMA)  # the format that `datasets` reads
        self._pending: list[Piece] = []
        self._digest = hashlib.blake2b(digest_size=16)
        self.sequences = self.tokens = 0

    def add(self, ids: Ids, trained: Mask, lengths: NDArray[np.int64]) -> None:
        """Append sequences from flat arrays of shapes (tokens,), (tokens,) and (sequences,)."""
        piece = Piece.of(ids, trained, lengths)
        _update(self._digest, piece)
        self._pending.append(piece)
        self.sequences += len(lengths)
        self.tokens += len(ids)
        if sum(len(pending.input_ids) for pending in self._pending) >= _PIECE_TOKENS:
            self._write()

    def close(self) -> tuple[str, list[Block]]:
        """Finish the file and return the digest of all sequences, and the blocks of the file."""
        if self._pending:
            self._write()
        self._writer.close()
        self._file.end_block()
        self._file.close()
        return self._digest.hexdigest(), self._file.blocks

    def abandon(self) -> None:
        """Close the file without finishing it."""
        self._file.close()

    def _write(self) -> None:
        has_weights = any(piece.trained.dtype.kind == "f" for piece in self._pending)
        columns = [
            (
                _lists(piece.offsets, piece.input_ids),
                _lists(*((piece.offsets, piece.trained.view(np.uint8)) if not has_weights else _none(piece, np.uint8))),
                _lists(
                    *((piece.offsets, piece.trained.astype(np.float32)) if has_weights else _none(piece, np.float32))
                ),
                pa.array(piece.supervised.astype(np.int32)),
                pa.array(piece.digests),
            )
            for piece in self._pending
        ]
        merged = [pa.concat_arrays(list(column)) for column in zip(*columns, strict=True)]
        self._writer.write_batch(pa.record_batch(merged, schema=SCHEMA))
        self._file.end_block()
        self._pending = []


def _lists(offsets: NDArray[np.int64], values: NDArray[Any]) -> Any:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))


def _none(piece: Piece, dtype: Any) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return offsets and values of empty lists."""
    return np.zeros_like(piece.offsets), np.zeros(0, dtype)


class _HashedFile:
    """A file that is written in blocks with a digest each."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self.blocks: list[Block] = []

    @property
    def closed(self) -> bool:
        return self._file.closed

    def write(self, data: Any) -> int:
        self._digest.update(data)
        try:
            return self._file.write(data)
        except OSError as problem:
            raise UnwritableError(problem.errno, problem.strerror) from problem

    def flush(self) -> None:
        self._file.flush()

    def end_block(self) -> None:
        """Begin another block."""
        self.blocks.append(Block(self._file.tell(), self._digest.hexdigest()))
        self._digest = hashlib.sha256()

    def close(self) -> None:
        self._file.close()


def _mapped(batch: Any) -> Piece:
    """Return the arrays of a record batch without a copy."""
    batch.validate(full=True)  # a stranger's offsets may lead anywhere
    ids, trained, weights = (batch.column(name) for name in ("input_ids", "trained", "weights"))
    if len(weights.values):
        trained, weights = weights, trained
    if batch.num_rows and (
        any(column.null_count for column in batch.columns)
        or not ids.offsets.equals(trained.offsets)
        or len(weights.values)
    ):
        raise pa.ArrowInvalid("its columns do not belong together")
    mask = trained.values.to_numpy()
    return Piece(
        ids.values.to_numpy(),
        mask if mask.dtype == np.float32 else mask.view(np.bool_),
        ids.offsets.to_numpy().astype(np.int64),
        batch.column("supervised").to_numpy().astype(np.int64),
        batch.column("digest").to_numpy(),
    )


def _update(made: Any, piece: Piece) -> None:
    for array in (piece.input_ids, piece.trained, np.diff(piece.offsets)):
        made.update(np.ascontiguousarray(array).data)


def _digest(pieces: Iterable[Piece]) -> str:
    made = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        _update(made, piece)
    return made.hexdigest()
