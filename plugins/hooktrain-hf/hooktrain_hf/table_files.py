"""Rows of Parquet and Arrow files."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from hooktrain_hf.arrow_values import row_converter
from hooktrain_hf.local_files import COMPRESSED
from hooktrain_hf.mapped_files import BLOCK, Indices, MappedFile, Row

__all__ = ["ArrowFile", "ParquetFile"]


class _TableFile(MappedFile):
    """A file of blocks of rows, of which rows are taken without a copy of the others."""

    @functools.cached_property
    @abc.abstractmethod
    def _starts(self) -> Indices:
        """Number of the first row of each block, and of all rows."""

    @functools.cached_property
    @abc.abstractmethod
    def _convert(self) -> Callable[[Any], list[Row]]: ...

    @abc.abstractmethod
    def _block(self, number: int) -> Any: ...

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, indices: Sequence[int]) -> list[Row]:
        wanted = np.asarray(indices, np.int64)
        blocks = np.searchsorted(self._starts, wanted, "right") - 1
        rows: list[Row] = []
        for block in np.unique(blocks).tolist():
            with self.reading():
                rows += self._convert(self._block(block).take(wanted[blocks == block] - self._starts[block]))
        return rows


class ParquetFile(_TableFile):
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

    def columns(self) -> list[str]:
        return list(self._file.schema_arrow.names)

    def _block(self, number: int) -> Any:
        last, table = vars(self).get("_last", (None, None))
        if last != number:
            table = self._file.read_row_group(number)
            self._last = (number, table)
        return table

    def rows(self, start: int = 0) -> Iterator[Row]:
        first = int(np.searchsorted(self._starts, start, "right")) - 1
        skipped = start - int(self._starts[first])
        with self.reading():
            groups = list(range(first, self._file.num_row_groups))
            for batch in self._file.iter_batches(BLOCK, row_groups=groups) if groups else ():
                yield from self._convert(batch.slice(skipped))
                skipped = max(0, skipped - batch.num_rows)


class ArrowFile(_TableFile):
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

    @functools.cached_property
    def _batches(self) -> list[Any]:
        return list(self._table.to_batches())

    @functools.cached_property
    def _starts(self) -> Indices:
        return np.cumsum([0, *(batch.num_rows for batch in self._batches)])

    def columns(self) -> list[str]:
        return list(self._table.column_names)

    def _block(self, number: int) -> Any:
        return self._batches[number]  # taken from the table, its columns would be joined first

    def rows(self, start: int = 0) -> Iterator[Row]:
        with self.reading():
            for batch in self._table.slice(start).to_batches(max_chunksize=BLOCK):
                yield from self._convert(batch)
