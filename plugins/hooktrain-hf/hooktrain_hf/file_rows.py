"""Rows of local files, read as they are written and only when they are asked for.

A file is mapped into memory. Of its rows only the places are kept, so that files may be larger than the memory.
"""

from __future__ import annotations

import abc
import array
import codecs
import csv
import functools
import io
import itertools
import json
import mmap
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from hooktrain import DataError
from hooktrain_hf.arrow_values import row_converter
from hooktrain_hf.local_files import COMPRESSED, kind_of
from hooktrain_hf.location import first_line

__all__ = ["FileRows", "RowFile", "RowStream", "TableRows", "open_file"]

Row = dict[str, Any]
Indices = NDArray[np.int64]

_BLOCK = 1024
"""Rows of a table that become Python values together."""
_CHUNK = 1 << 24
"""Bytes that are searched for line breaks together."""
_LONGEST_TEXT = 1 << 28
"""Bytes of a text that is one example; tokenizing it takes about 50 times as much memory."""
_LONGEST_CELL = 2**31 - 1
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


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


def open_file(path: Path, text_unit: str = "file") -> RowFile:
    """Return the rows of a data file; it is read when they are."""
    kind = kind_of(path)
    if kind == "csv":
        return _Csv(path)
    if kind == "text":
        return _Text(path, text_unit)
    return _Parquet(path) if kind == "parquet" else _Arrow(path) if kind == "arrow" else _Json(path)


# ------------------------------------------------------------------------------------------------- bytes and lines


class _Mapped(RowFile):
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
        return open_file, (self.path,)

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


class _Spans(_Mapped):
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
            for at in range(skipped, len(starts), _BLOCK):
                block = zip(starts[at : at + _BLOCK].tolist(), ends[at : at + _BLOCK].tolist(), strict=True)
                for begin, end in block:
                    yield self.row(begin, end)


# ------------------------------------------------------------------------------------------------------------- JSON


class _Json(_Spans):
    """A file of JSON objects: one a line, one after the other, or in a list."""

    def found(self) -> Iterator[tuple[Indices, Indices]]:
        first, second = (*itertools.islice(self._texts(), 2), b"", b"")[:2]
        # an object that is written over several lines has none on its second
        multiline = first.startswith(b"{") and not second.startswith(b"{") and not _is_json(first)
        if multiline or first.startswith(b"["):
            yield self._values()
        else:
            yield from self._lines()

    def _lines(self) -> Iterator[tuple[Indices, Indices]]:
        for starts, ends in self.lines():
            kept = ~self.without_text(starts, ends)
            yield starts[kept], ends[kept]

    def _texts(self) -> Iterator[bytes]:
        for starts, ends in self._lines():
            for start, end in zip(starts, ends, strict=True):
                yield self.data[start:end].strip()

    def _values(self) -> tuple[Indices, Indices]:
        """Return the places of values in a list, or of values with white space between them."""
        text = self.text(self.begin, len(self.data))
        decode, space = json.JSONDecoder().raw_decode, re.compile(r"[ \t\n\r]*")
        starts, ends = array.array("q"), array.array("q")

        def skip(at: int) -> int:
            return cast(re.Match[str], space.match(text, at)).end()

        place, counted = self.begin, 0  # the place in bytes of a character
        at = skip(0)
        if listed := text[at] == "[":
            at = skip(at + 1)
        try:
            while at < len(text) and not (listed and text[at] == "]"):
                if listed and starts:
                    if text[at] != ",":
                        raise json.JSONDecodeError("expected ',' or ']'", text, at)
                    at = skip(at + 1)
                _, end = decode(text, at)
                place += len(text[counted:at].encode())
                starts.append(place)
                place += len(text[at:end].encode())
                ends.append(place)
                counted, at = end, skip(end)
            if listed and (at == len(text) or skip(at + 1) < len(text)):
                raise json.JSONDecodeError("expected the list to end with the file", text, at)
        except json.JSONDecodeError as problem:
            raise self.error(f"not JSON: {problem.msg}", problem.lineno) from problem
        except RecursionError as problem:
            raise self.error(f"JSON that is nested too deeply: {problem}", self.line_at(place)) from problem
        return np.array(starts, np.int64), np.array(ends, np.int64)

    def row(self, start: int, end: int) -> Row:
        text = self.text(start, end)
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as problem:
            raise self.error(f"not JSON: {problem}", self.line_at(start)) from problem
        if type(found) is not dict:
            raise self.error(f"a {type(found).__name__}, expected an object of columns", self.line_at(start))
        if _SURROGATE.search(text):
            try:
                json.dumps(found, ensure_ascii=False).encode()
            except UnicodeEncodeError as problem:
                raise self.error("half of a surrogate pair, which is no text", self.line_at(start)) from problem
        return found


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError) as problem:
        return isinstance(problem, RecursionError)
    return True


# ------------------------------------------------------------------------------------------------------ text and CSV


class _Text(_Spans):
    """A text file, whose rows are the file, its paragraphs or its lines, with the column ``text``."""

    def __init__(self, path: Path, unit: str) -> None:
        super().__init__(path)
        self.unit = unit

    def __reduce__(self) -> tuple[Any, ...]:
        return open_file, (self.path, self.unit)

    def columns(self) -> list[str]:
        return ["text"]

    def found(self) -> Iterator[tuple[Indices, Indices]]:
        if self.unit == "file":
            if len(self.data) > _LONGEST_TEXT:
                raise self.error(
                    f"a text of {len(self.data) >> 20:,} MiB would be one example; write `data.text_unit: paragraph`"
                )
            for starts, ends in self.lines():
                if not self.without_text(starts, ends).all():
                    yield np.array([self.begin], np.int64), np.array([len(self.data)], np.int64)
                    return
            return
        if self.unit == "line":
            for starts, ends in self.lines():
                kept = ~self.without_text(starts, ends)
                yield starts[kept], ends[kept]
            return
        pairs = list(self.lines())
        if pairs:
            starts, ends = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
            written = np.concatenate([[False], ~self.without_text(starts, ends), [False]])
            yield (
                starts[np.flatnonzero(written[1:-1] & ~written[:-2])],
                ends[np.flatnonzero(written[1:-1] & ~written[2:])],
            )

    def row(self, start: int, end: int) -> Row:
        text = self.text(start, end)
        return {"text": text if self.unit == "file" else text.removesuffix("\r")}


class _Csv(_Spans):
    """A CSV or TSV file with a header; each cell is the text that is written there."""

    @functools.cached_property
    def _dialect(self) -> dict[str, Any]:
        endings = [ending.lower() for ending in self.path.suffixes]
        return {"delimiter": "\t" if ".tsv" in endings[-2:] else ",", "strict": True}

    @functools.cached_property
    def _header(self) -> list[str]:
        header = next((cells for _, _, cells in self._records()), [])
        names = [name or f"column {number}" for number, name in enumerate(header, 1)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise self.error(f"two columns are named '{twice}'", 1)
        return names

    def columns(self) -> list[str]:
        return self._header

    def _records(self) -> Iterator[tuple[int, int, list[str]]]:
        """Yield where each record that is not empty starts and ends, and its cells."""
        data, ends_at = self.data, self.begin

        def lines() -> Iterator[str]:
            nonlocal ends_at
            for starts, ends in self.lines():
                for start, end in zip(starts.tolist(), (ends + 1).tolist(), strict=True):
                    ends_at = end
                    yield self.text(start, end)

        start = ends_at
        csv.field_size_limit(_LONGEST_CELL)
        try:
            for cells in csv.reader(lines(), **self._dialect):
                if cells:
                    yield start, min(ends_at, len(data)), cells
                start = ends_at
        except csv.Error as problem:
            raise self.error(f"not CSV in the record that begins there: {problem}", self.line_at(start)) from problem

    def found(self) -> Iterator[tuple[Indices, Indices]]:
        records = ((start, end) for start, end, cells in self._records() if self._fits(start, cells))
        next(records, None)  # the header
        while block := list(itertools.islice(records, _BLOCK)):
            pairs = np.array(block, np.int64)
            yield pairs[:, 0], pairs[:, 1]

    def rows(self, start: int = 0) -> Iterator[Row]:
        records = itertools.islice(self._records(), start + 1, None)
        return (dict(zip(self._header, cells, strict=True)) for at, _, cells in records if self._fits(at, cells))

    def _fits(self, start: int, cells: list[str]) -> bool:
        if len(cells) != len(self._header):
            raise self.error(
                f"{len(cells)} cells, expected {len(self._header)}, as many as the header has", self.line_at(start)
            )
        return True

    def row(self, start: int, end: int) -> Row:
        lines = io.StringIO(self.text(start, end), newline="\n")
        return dict(zip(self._header, next(csv.reader(lines, **self._dialect)), strict=True))


# ----------------------------------------------------------------------------------------------------------- tables


class _Parquet(_Mapped):
    """A Parquet file; one group of rows is in memory at a time."""

    @functools.cached_property
    def _file(self) -> Any:
        import pyarrow.parquet

        with self.reading():
            if self.path.suffix.lower() in COMPRESSED:
                return pyarrow.parquet.ParquetFile(pyarrow.BufferReader(self.data))
            return pyarrow.parquet.ParquetFile(self.path, memory_map=True)

    @functools.cached_property
    def _convert(self) -> Callable[[Any], list[Row]]:
        return row_converter(self._file.schema_arrow)

    @functools.cached_property
    def _starts(self) -> Indices:
        metadata = self._file.metadata
        return np.cumsum([0, *(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))])

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def columns(self) -> list[str]:
        return list(self._file.schema_arrow.names)

    def take(self, indices: Sequence[int]) -> list[Row]:
        wanted = np.asarray(indices, np.int64)
        groups = np.searchsorted(self._starts, wanted, "right") - 1
        rows: list[Row] = []
        for group in np.unique(groups).tolist():
            with self.reading():
                rows += self._convert(self._group(group).take(wanted[groups == group] - self._starts[group]))
        return rows

    def _group(self, group: int) -> Any:
        number, table = vars(self).get("_last", (None, None))
        if number != group:
            table = self._file.read_row_group(group)
            self._last = (group, table)
        return table

    def rows(self, start: int = 0) -> Iterator[Row]:
        first = int(np.searchsorted(self._starts, start, "right")) - 1
        skipped = start - int(self._starts[first])
        with self.reading():
            groups = list(range(first, self._file.num_row_groups))
            for batch in self._file.iter_batches(_BLOCK, row_groups=groups) if groups else ():
                yield from self._convert(batch.slice(skipped))
                skipped = max(0, skipped - batch.num_rows)


class _Arrow(_Mapped):
    """A file of Arrow's IPC format, as a file or as a stream."""

    @functools.cached_property
    def _table(self) -> Any:
        import pyarrow

        with self.reading():
            if not self.data:
                return pyarrow.table({})
            buffer = pyarrow.py_buffer(self.data)
            opened = pyarrow.ipc.open_file if self.data[:6] == b"ARROW1" else pyarrow.ipc.open_stream
            return opened(buffer).read_all()

    @functools.cached_property
    def _convert(self) -> Callable[[Any], list[Row]]:
        return row_converter(self._table.schema)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def columns(self) -> list[str]:
        return list(self._table.column_names)

    def take(self, indices: Sequence[int]) -> list[Row]:
        with self.reading():
            return self._convert(self._table.take(np.asarray(indices, np.int64)))

    def rows(self, start: int = 0) -> Iterator[Row]:
        with self.reading():
            for batch in self._table.slice(start).to_batches(max_chunksize=_BLOCK):
                yield from self._convert(batch)


# ------------------------------------------------------------------------------------------------- rows of a source


def _columns(files: Sequence[RowFile]) -> list[str] | None:
    """Return the columns of files; None where each row has its own."""
    known = [file.columns() for file in files]
    return list(dict.fromkeys(name for names in known for name in names or ())) if all(known) else None


class FileRows:
    """Rows of files, one file after the other, or some of these rows."""

    def __init__(self, files: Sequence[RowFile], chosen: Indices | None = None) -> None:
        self._files = list(files)
        self._bounds = np.cumsum([0, *map(len, self._files)])
        self._chosen = chosen

    def __len__(self) -> int:
        return int(self._bounds[-1]) if self._chosen is None else len(self._chosen)

    @property
    def column_names(self) -> list[str] | None:
        return _columns(self._files)

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._take(np.array([index if self._chosen is None else self._chosen[index]], np.int64))[0]

    def __iter__(self) -> Iterator[Row]:
        if self._chosen is None:
            yield from itertools.chain.from_iterable(file.rows() for file in self._files)
            return
        for at in range(0, len(self._chosen), _BLOCK):
            yield from self._take(self._chosen[at : at + _BLOCK])

    def _take(self, indices: Indices) -> list[Row]:
        """Return rows by their numbers over all files; those of one file that follow each other are in order."""
        numbers = np.searchsorted(self._bounds, indices, "right") - 1
        rows: list[Row] = []
        edges = np.flatnonzero((np.diff(numbers) != 0) | (np.diff(indices) < 0)) + 1
        for part, of in zip(np.split(indices, edges), np.split(numbers, edges), strict=True):
            rows += self._files[int(of[0])].take((part - self._bounds[of[0]]).tolist())
        return rows

    def place_of(self, index: int) -> str:
        """Return the file of a row and, where it has lines, the line on which the row begins."""
        number = int(index if self._chosen is None else self._chosen[index])
        file = int(np.searchsorted(self._bounds, number, "right")) - 1
        return self._files[file].place_of(number - int(self._bounds[file]))

    def select(self, indices: Sequence[int] | Indices) -> FileRows:
        """Return some of the rows."""
        wanted = np.asarray(indices, np.int64)
        return FileRows(self._files, wanted if self._chosen is None else self._chosen[wanted])


class RowStream:
    """Rows of files that are read in order and not counted; it knows its place and can return to it."""

    def __init__(self, files: Sequence[RowFile]) -> None:
        self._files = list(files)
        self._begin = self._place = (0, 0)

    @property
    def column_names(self) -> list[str] | None:
        return _columns(self._files)

    def __iter__(self) -> Iterator[Row]:
        number, start = self._place = self._begin
        for file in range(number, len(self._files)):
            for index, row in enumerate(self._files[file].rows(start), start + 1):
                self._place = (file, index)
                yield row
            start = 0

    def shuffle(self, *, seed: int, buffer_size: int) -> RowStream:
        """Return a stream of the files in another order; rows of a file keep theirs."""
        order = np.random.default_rng(seed).permutation(len(self._files))
        return RowStream([self._files[number] for number in order])

    def state_dict(self) -> dict[str, Any]:
        return {"file": self._place[0], "row": self._place[1]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._begin = self._place = (int(state_dict["file"]), int(state_dict["row"]))


class TableRows:
    """Rows of a ``datasets.Dataset``, with the values that files of the same content have."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset.with_format("arrow")
        self._convert = row_converter(dataset.features.arrow_schema)

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def column_names(self) -> list[str]:
        return list(self._dataset.column_names)

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._convert(self._dataset[index : index + 1])[0]

    def __iter__(self) -> Iterator[Row]:
        for table in self._dataset.iter(batch_size=_BLOCK):
            yield from self._convert(table)

    def select(self, indices: Sequence[int]) -> TableRows:
        """Return some of the rows."""
        return TableRows(self._dataset.select(indices))
