"""The rows of a source, from what a plugin loads to token ids: converted, rendered, tokenized, written."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import attrs

from hooktrain import DataError, World
from hooktrain_sft.config import SFTDataConfig, TokenDataConfig
from hooktrain_sft.data.arrow_store import StoreWriter
from hooktrain_sft.data.converters import known_formats
from hooktrain_sft.data.formats import Format, choose_format
from hooktrain_sft.data.tokenize import Encoder

__all__ = ["Reader", "SourceRows", "label_of"]

_BATCH = 1024
"""Rows that are tokenized together: enough to keep the tokenizer's threads busy."""


def label_of(source: Any) -> str:
    """What a source is called in messages."""
    return str(getattr(source, "name_or_path", None) or getattr(source, "name", None) or type(source).__name__)


@attrs.frozen
class SourceRows:
    """A source that has been opened.

    Attributes:
        label: what it is called in messages.
        rows: what ``load_source`` returned.
        format: how its rows are converted, or None where they are rendered as they are.
        total: how many rows there are, or None for a stream.
    """

    label: str
    rows: Any
    format: Format | None
    total: int | None

    def __iter__(self) -> Iterator[Any]:
        """Rows in order."""
        rows = self.rows
        if self.total is not None and hasattr(rows, "iter") and hasattr(rows, "features"):
            return _by_block(rows)
        return iter(rows) if hasattr(rows, "__iter__") else (rows[index] for index in range(len(rows)))


def _by_block(rows: Any) -> Iterator[Any]:
    """Rows of a ``datasets`` table, a thousand at a time: by itself it reads ten, which takes twice as long."""
    for block in rows.iter(batch_size=_BATCH):
        names = list(block)
        for values in zip(*block.values(), strict=True):
            yield dict(zip(names, values, strict=True))


class Reader:
    """Reads sources for one recipe."""

    def __init__(self, config: TokenDataConfig, tokenizer: Any, world: World, hooks: Any) -> None:
        self.config, self.tokenizer, self.world, self.hooks = config, tokenizer, world, hooks
        self.encoder = Encoder(tokenizer)

    def open(self, source: Any) -> SourceRows:
        """Load a source and find out which format it has.

        Raises:
            DataError: when no plugin loads it, it has no rows, or their format is not known.
        """
        label = label_of(source)
        rows = self.hooks.load_source(config=source, world=self.world)
        if rows is None:
            raise DataError(f"{label}: no plugin loads a {type(source).__name__}; install or enable one that does")
        total = len(rows) if hasattr(rows, "__len__") else None
        first = next(iter(SourceRows(label, rows, None, total)), None)
        if first is None:
            raise DataError(
                f"{label}: given no rows, expected at least one; check the name and the split of the source"
            )
        return SourceRows(label, rows, self._format(source, rows, first, label), total)

    def _format(self, source: Any, rows: Any, first: Any, label: str) -> Format | None:
        if not isinstance(self.config, SFTDataConfig):
            return None
        if not isinstance(first, Mapping):
            raise DataError(
                f"{label}, row 0: given a {type(first).__name__}, expected a mapping of column names to values"
            )
        columns = [str(column) for column in getattr(rows, "column_names", None) or first]
        try:
            return choose_format(columns, first, source, self.config, known_formats(source, self.config, self.hooks))
        except DataError as problem:
            if len(self.hooks.render_example.get_hookimpls()) > 1:
                return None  # another plugin renders rows, and may know what these are
            raise DataError(f"{label}: {problem}") from problem

    def render(self, opened: SourceRows, rows: Iterable[Any], first: int = 0) -> Iterator[Any]:
        """Each row as text with spans; rows are numbered from ``first`` on.

        Raises:
            DataError: with the source and the number of the row that cannot be used.
        """
        render, tokenizer, config = self.hooks.render_example, self.tokenizer, self.config
        convert: Callable[[Any], Any] | None = None if opened.format is None else opened.format.convert
        for index, row in enumerate(rows, first):
            try:
                made = render(row=row if convert is None else convert(row), tokenizer=tokenizer, config=config)
            except DataError as problem:
                raise DataError(f"{opened.label}, row {index}: {problem}") from problem
            if made is None:
                raise DataError(
                    f"{opened.label}, row {index}: no plugin renders rows for {type(config).__name__}; enable one"
                )
            yield made

    def write(
        self, opened: SourceRows, writer: StoreWriter, progress: Callable[[int], None] = lambda rows: None
    ) -> Mapping[str, Any]:
        """Write all rows, tokenizing a batch in the background while the next is rendered; returns facts for reports.

        Args:
            opened: the source.
            writer: where the rows go.
            progress: called with the number of rows read so far.
        """

        def finish(batch: Sequence[Any]) -> None:
            writer.add(*self.encoder.flat(batch))

        done = 0
        notes: dict[str, dict[str, Any]] = {}
        pending: Future[None] | None = None
        with ThreadPoolExecutor(1, "hooktrain-tokenize") as background:
            for batch in batches(self.render(opened, opened)):
                if pending is not None:
                    pending.result()
                pending = background.submit(finish, batch)
                for index, row in enumerate(batch, done):
                    for note in row.notes:
                        where, _, what = note.rpartition(": ")
                        notes.setdefault(what, {"count": 0, "first": f"row {index}, {where}"})["count"] += 1
                done += len(batch)
                progress(done)
            if pending is not None:
                pending.result()
        return self.facts(opened) | {"rows": writer.rows, "tokens": writer.tokens, "notes": notes}

    def facts(self, opened: SourceRows) -> dict[str, Any]:
        """What was found out about a source."""
        return {
            "source": opened.label,
            "format": opened.format.name if opened.format else None,
            "why": opened.format.why if opened.format else None,
        }


def batches(items: Iterator[Any]) -> Iterator[list[Any]]:
    """Lists of up to 1024 items."""
    while batch := list(itertools.islice(items, _BATCH)):
        yield batch
