"""Rows of Parquet and Arrow files."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from hooktrain_hf.arrow_values import row_converter
from hooktrain_hf.local_files import COMPRESSED
from hooktrain_hf.mapped_files import BLOCK, Indices, MappedFile, Row

__all__ = ["ArrowFile", "ParquetFile"]


class ParquetFile(MappedFile):
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
            for batch in self._file.iter_batches(BLOCK, row_groups=groups) if groups else ():
                yield from self._convert(batch.slice(skipped))
                skipped = max(0, skipped - batch.num_rows)


class ArrowFile(MappedFile):
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
            for batch in self._table.slice(start).to_batches(max_chunksize=BLOCK):
                yield from self._convert(batch)
