"""Rows of JSON, text and CSV files, as they are written: no type is guessed."""

from __future__ import annotations

import array
import csv
import functools
import io
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from hooktrain_hf.mapped_files import BLOCK, Indices, Row, SpanFile

__all__ = ["CsvFile", "JsonFile", "TextFile"]

_LONGEST_TEXT = 1 << 28
"""Bytes of a text that is one example; tokenizing it takes about 50 times as much memory."""
_LONGEST_CELL = 2**31 - 1
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class JsonFile(SpanFile):
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
            found = _DECODER.decode(text)
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


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; raise where a name is there twice, as one of the values would be lost."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"two fields are named '{next(name for name in names if names.count(name) > 1)}'")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError) as problem:
        return isinstance(problem, RecursionError)
    return True


class TextFile(SpanFile):
    """A text file, whose rows are the file, its paragraphs or its lines, with the column ``text``."""

    def __init__(self, path: Path, unit: str) -> None:
        super().__init__(path)
        self.unit = unit

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.unit)

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


class CsvFile(SpanFile):
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
        while block := list(itertools.islice(records, BLOCK)):
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
