"""Rows of the files of a source, one file after the other, and of data sets that ``datasets`` has read."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hooktrain_hf.arrow_values import row_converter
from hooktrain_hf.local_files import kind_of
from hooktrain_hf.mapped_files import BLOCK, Indices, Row, RowFile
from hooktrain_hf.table_files import ArrowFile, ParquetFile
from hooktrain_hf.text_files import CsvFile, JsonFile, TextFile

__all__ = ["FileRows", "RowStream", "TableRows", "open_file"]


def open_file(path: Path, text_unit: str = "file") -> RowFile:
    """Return the rows of a data file; it is read when they are."""
    kind = kind_of(path)
    if kind == "csv":
        return CsvFile(path)
    if kind == "text":
        return TextFile(path, text_unit)
    return ParquetFile(path) if kind == "parquet" else ArrowFile(path) if kind == "arrow" else JsonFile(path)


def _columns(files: Sequence[RowFile]) -> list[str] | None:
    """Return the columns of files; None where each row has its own."""
    known = [file.columns() for file in files]
    return list(dict.fromkeys(name for names in known for name in names or ())) if all(known) else None


class FileRows:
    """Rows of files, one file after the other, or some of these rows; ``remarks`` are for the report."""

    def __init__(self, files: Sequence[RowFile], chosen: Indices | None = None) -> None:
        self.remarks: Sequence[str] = ()
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
        for at in range(0, len(self._chosen), BLOCK):
            yield from self._take(self._chosen[at : at + BLOCK])

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
    """Rows of files that are read in order and not counted; it knows its place and can return to it.

    Attributes:
        remarks: for the report.
        wanted: whether a row is read; None reads all.
    """

    def __init__(self, files: Sequence[RowFile], wanted: Callable[[Row], bool] | None = None) -> None:
        self.remarks: Sequence[str] = ()
        self.wanted = wanted
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
                if self.wanted is None or self.wanted(row):
                    yield row
            start = 0

    def shuffle(self, *, seed: int, buffer_size: int) -> RowStream:
        """Return a stream of the files in another order; rows of a file keep theirs."""
        order = np.random.default_rng(seed).permutation(len(self._files))
        return RowStream([self._files[number] for number in order], self.wanted)

    def filter(self, wanted: Callable[[Row], bool]) -> RowStream:
        """Return a stream of the rows that are wanted."""
        made = RowStream(self._files, wanted)
        made.remarks = self.remarks
        return made

    def state_dict(self) -> dict[str, Any]:
        return {"file": self._place[0], "row": self._place[1]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._begin = self._place = (int(state_dict["file"]), int(state_dict["row"]))


class TableRows:
    """Rows of a ``datasets.Dataset``, with the values that files of the same content have; ``remarks`` on them."""

    def __init__(self, dataset: Any) -> None:
        self.remarks: Sequence[str] = ()
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
        for table in self._dataset.iter(batch_size=BLOCK):
            yield from self._convert(table)

    def select(self, indices: Sequence[int]) -> TableRows:
        """Return some of the rows."""
        return TableRows(self._dataset.select(indices))
