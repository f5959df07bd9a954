"""Data files that are mapped into memory; of their rows only the places are kept.

So a file may be larger than the memory, and rows are made when they are asked for.
"""

from __future__ import annotations

import abc
import codecs
import functools
import mmap
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from hooktrain import DataError
from hooktrain_hf.local_files import COMPRESSED
from hooktrain_hf.location import first_line

__all__ = ["BLOCK", "Indices", "MappedFile", "Row", "RowFile", "SpanFile"]

Row = dict[str, Any]
Indices = NDArray[np.int64]

BLOCK = 1024
"""Rows that become Python values together."""
_CHUNK = 1 << 24
"""Bytes that are searched for line breaks together."""


class RowFile(abc.ABC):
    """A data file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return the number of rows."""

    @abc.abstractmethod
    def take(self, indices: Sequence[int]) -> list[Row]:
        """Return the rows of these numbers, in ascending order."""

    @abc.abstractmethod
    def rows(self, start: int = 0) -> Iterator[Row]:
        """Yield the rows from a number on, without counting them all."""

    def place_of(self, index: int) -> str:
        """Return where a row is, for errors."""
        return self.path.name

    def columns(self) -> list[str] | None:
        """Return the names of the columns; None where each row has its own."""
        return None

    def error(self, problem: str, line: int | None = None) -> DataError:
        place = f"'{self.path}'" + ("" if line is None else f", line {line:,}")
        return DataError(f"data.sources: given {place}, which cannot be read ({problem}); correct the file")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn the errors of other libraries into one that names the file."""
        try:
            yield
        except DataError:
            raise
        except Exception as problem:  # the file system, decompressors and Arrow each raise kinds of their own
            raise self.error(first_line(problem)) from problem


class MappedFile(RowFile):
    """A file whose bytes are mapped into memory; a compressed one is unpacked to a file without a name first."""

    @functools.cached_property
    def data(self) -> mmap.mmap | bytes:
        with self.reading(), _unpacked(self.path) as opened:
            if opened.seek(0, 2) == 0:
                return b""
            return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)

    @property
    def begin(self) -> int:
        """The place after a byte order mark."""
        return len(codecs.BOM_UTF8) if self.data[: len(codecs.BOM_UTF8)] == codecs.BOM_UTF8 else 0

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)

    def lines(self) -> Iterator[tuple[Indices, Indices]]:
        """Yield where lines start and end, without their line breaks, many at a time; all are proven to be UTF-8."""
        data, at, size = self.data, self.begin, len(self.data)
        decode = codecs.getincrementaldecoder("utf-8")().decode
        start = at
        while at < size:
            chunk = data[at : at + _CHUNK]
            try:
                decode(chunk, at + len(chunk) == size)
            except UnicodeDecodeError as problem:
                line = self.line_at(at) + chunk[: max(0, problem.start)].count(b"\n")
                raise self.error(f"the text is not UTF-8: {problem.reason}", line) from problem
            ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == 10).astype(np.int64) + at
            at += len(chunk)
            if at == size and (not len(ends) or ends[-1] != size - 1):
                ends = np.append(ends, size)
            if len(ends):
                yield np.concatenate([[start], ends[:-1] + 1]).astype(np.int64), ends
                start = int(ends[-1]) + 1

    def text(self, start: int, end: int) -> str:
        """Return the text at a place."""
        try:
            return self.data[start:end].decode()
        except UnicodeDecodeError as problem:
            line = self.line_at(start + problem.start)
            raise self.error(f"the text is not UTF-8: {problem.reason}", line) from problem

    def line_at(self, place: int) -> int:
        """Return the number of the line at a place."""
        return 1 + sum(self.data[at : min(at + _CHUNK, place)].count(b"\n") for at in range(0, place, _CHUNK))

    def without_text(self, starts: Indices, ends: Indices) -> NDArray[np.bool_]:
        """Return which lines are empty or white space."""
        if not len(starts):
            return np.zeros(0, np.bool_)
        data = self.data
        empty: NDArray[np.bool_] = starts == ends
        firsts = np.frombuffer(data, np.uint8)[np.minimum(starts, len(data) - 1)]
        for index in np.flatnonzero(~empty & (firsts <= ord(" "))).tolist():
            empty[index] = not data[starts[index] : ends[index]].strip()
        return empty


@contextmanager
def _unpacked(path: Path) -> Iterator[IO[bytes]]:
    ending = path.suffix.lower()
    if ending not in COMPRESSED:
        with path.open("rb") as plain:
            yield plain
        return
    with tempfile.TemporaryFile() as target:
        with _decompressor(path, ending) as packed:
            shutil.copyfileobj(packed, target, _CHUNK)
        target.flush()
        yield target


def _decompressor(path: Path, ending: str) -> IO[bytes]:
    if ending == ".gz":
        import gzip

        return cast(IO[bytes], gzip.open(path))
    if ending == ".bz2":
        import bz2

        return cast(IO[bytes], bz2.open(path))
    if ending == ".xz":
        import lzma

        return cast(IO[bytes], lzma.open(path))
    import pyarrow

    return cast(IO[bytes], pyarrow.input_stream(str(path), compression="zstd"))


class SpanFile(MappedFile):
    """A file whose rows are at places that can be found without reading them."""

    @abc.abstractmethod
    def found(self) -> Iterator[tuple[Indices, Indices]]:
        """Yield where rows start and end, many at a time."""

    @abc.abstractmethod
    def row(self, start: int, end: int) -> Row:
        """Return the row at a place."""

    @functools.cached_property
    def spans(self) -> tuple[Indices, Indices]:
        pairs = list(self.found()) or [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
        return np.concatenate([starts for starts, _ in pairs]), np.concatenate([ends for _, ends in pairs])

    def __len__(self) -> int:
        return len(self.spans[0])

    def place_of(self, index: int) -> str:
        return f"{self.path.name}, line {self.line_at(int(self.spans[0][index])):,}"

    def take(self, indices: Sequence[int]) -> list[Row]:
        starts, ends = self.spans
        return [self.row(int(starts[index]), int(ends[index])) for index in indices]

    def rows(self, start: int = 0) -> Iterator[Row]:
        pairs = iter([self.spans]) if "spans" in vars(self) else self.found()
        for starts, ends in pairs:
            skipped = min(start, len(starts))
            start -= skipped
            for at in range(skipped, len(starts), BLOCK):
                block = zip(starts[at : at + BLOCK].tolist(), ends[at : at + BLOCK].tolist(), strict=True)
                for begin, end in block:
                    yield self.row(begin, end)
