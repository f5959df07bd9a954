"""Reading of sources: examples are loaded, converted, rendered, tokenized and written."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import attrs

from hooktrain import DataError, World
from hooktrain_sft.compat import column_names, is_table
from hooktrain_sft.config import SFTDataConfig, SourceOptions, TokenDataConfig, with_text_unit
from hooktrain_sft.data.arrow_store import StoreWriter
from hooktrain_sft.data.columns import read_columns
from hooktrain_sft.data.converters import known_formats
from hooktrain_sft.data.documents import Documents
from hooktrain_sft.data.formats import Format, choose_format
from hooktrain_sft.data.packing import Bins, check_bins
from hooktrain_sft.data.tokenize import Encoder

__all__ = ["OpenedSource", "Reader", "label_of", "pack", "unused_columns"]

_BATCH = 1024
"""Examples that are tokenized together: enough to keep the tokenizer's threads busy."""


_NOT_USED = "column not used "
"""Beginning of a note about a column, before its name."""


def label_of(source: Any) -> str:
    """Return the name of a source for messages."""
    options = SourceOptions.of(source)
    return str(options.name_or_path or options.name or type(source).__name__)


def unused_columns(notes: Iterable[str]) -> list[str]:
    """Return the columns that are not used, from the notes about a source's examples."""
    return [note.removeprefix(_NOT_USED) for note in notes if note.startswith(_NOT_USED)]


@attrs.frozen
class OpenedSource:
    """A loaded source.

    Attributes:
        label: its name for messages.
        examples: the result of ``load_source``.
        format: the format of its examples, or None where they are rendered unchanged.
        total: the number of examples, or None for a stream.
    """

    label: str
    examples: Any
    format: Format | None
    total: int | None

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the examples in order."""
        loaded = self.examples
        if is_table(loaded):
            return _in_blocks(loaded)
        return iter(loaded) if isinstance(loaded, Iterable) else (loaded[index] for index in range(len(loaded)))


def _in_blocks(table: Any) -> Iterator[Any]:
    """Yield the examples of a ``datasets`` table; blocks of 1024 take half the time of its own blocks of ten."""
    for block in table.iter(batch_size=_BATCH):
        names = list(block)
        for values in zip(*block.values(), strict=True):
            yield dict(zip(names, values, strict=True))


class Reader:
    """Reader of the sources of a recipe."""

    def __init__(self, config: TokenDataConfig, tokenizer: Any, world: World, hooks: Any) -> None:
        self.config, self.tokenizer, self.world, self.hooks = config, tokenizer, world, hooks
        self.encoder = Encoder(tokenizer)

    def open(self, source: Any) -> OpenedSource:
        """Load a source and choose the format of its examples.

        Raises:
            DataError: when no plugin loads it, it has no examples, or their format is not known.
        """
        label = label_of(source)
        examples = self.hooks.load_source(config=with_text_unit(source, self.config), world=self.world)
        if examples is None:
            raise DataError(f"{label}: no plugin loads a {type(source).__name__}; install or enable one that does")
        total = len(examples) if isinstance(examples, Sized) else None
        first = next(iter(OpenedSource(label, examples, None, total)), None)
        if first is None:
            raise DataError(
                f"{label}: given no examples, expected at least one; check the name and the split of the source"
            )
        return OpenedSource(label, examples, self._format(source, examples, first, label), total)

    def _format(self, source: Any, examples: Any, first: Any, label: str) -> Format | None:
        if not isinstance(self.config, SFTDataConfig):
            return None
        if not isinstance(first, Mapping):
            raise DataError(
                f"{label}, example 0: given a {type(first).__name__}, expected a mapping of column names to values"
            )
        columns = self._columns(SourceOptions.of(source, self.config), examples, first)
        try:
            return choose_format(columns, first, source, self.config, known_formats(source, self.config, self.hooks))
        except DataError as problem:
            if len(self.hooks.render_example.get_hookimpls()) > 1:
                return None  # another plugin renders examples, and may know the format
            raise DataError(f"{label}: {problem}") from problem

    @staticmethod
    def _columns(options: SourceOptions, examples: Any, first: Mapping[str, Any]) -> list[str]:
        """Return the source's columns: of examples that have each their own, at least those that the recipe names."""
        columns = dict.fromkeys(str(column) for column in column_names(examples) or first)
        paths = [*options.columns.values(), *options.role_mapping.values()]
        named = {path.partition(".")[0] for path in paths} - set(columns)
        most = None if isinstance(examples, Sized) else _BATCH
        for example in itertools.islice(OpenedSource("", examples, None, None), most) if named else ():
            columns |= dict.fromkeys(name for name in named if name in example)
            if named <= columns.keys():
                break
        return list(columns)

    def render(self, opened: OpenedSource, examples: Iterable[Any], first: int = 0) -> Iterator[Any]:
        """Yield each example as text with spans; examples are numbered from ``first`` on.

        Raises:
            DataError: with the source and the number of the example that cannot be used.
        """
        render, tokenizer, config = self.hooks.render_example, self.tokenizer, self.config
        convert: Callable[[Any], Any] | None = None if opened.format is None else opened.format.convert
        only_ours = len(render.get_hookimpls()) == 1  # another plugin may read any column
        for index, example in enumerate(examples, first):
            try:
                raw = example if convert is None else convert(example)
                raw, unused = read_columns(raw, example, opened.format, config)
                made = render(example=raw, tokenizer=tokenizer, config=config)
                if made is None:
                    raise DataError(f"no plugin renders examples for {type(config).__name__}; enable one")
            except DataError as problem:
                raise DataError(
                    f"{opened.label}, example {index}{_place(opened.examples, index)}: {problem}"
                ) from problem
            unused = (*unused, *made.unused)
            if unused and only_ours:
                made = attrs.evolve(made, notes=(*made.notes, *(f"column: {_NOT_USED}{name}" for name in unused)))
            yield made

    def write(
        self, opened: OpenedSource, writer: StoreWriter, progress: Callable[[int], None] = lambda done: None
    ) -> Mapping[str, Any]:
        """Write all examples, tokenizing a batch in the background while the next is rendered.

        Args:
            opened: the source.
            writer: writer of the tokens.
            progress: called with the number of examples read so far.

        Returns:
            Facts for the report.
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
                for index, rendered in enumerate(batch, done):
                    for note in rendered.notes:
                        where, _, what = note.rpartition(": ")
                        notes.setdefault(what, {"count": 0, "first": f"example {index}, {where}"})["count"] += 1
                done += len(batch)
                progress(done)
            if pending is not None:
                pending.result()
        return self.facts(opened) | {"rows": writer.sequences, "tokens": writer.tokens, "notes": notes}

    def facts(self, opened: OpenedSource) -> dict[str, Any]:
        """Return the facts about a source for the report."""
        return {
            "source": opened.label,
            "format": opened.format.name if opened.format else None,
            "why": opened.format.why if opened.format else None,
        }


@runtime_checkable
class _Located(Protocol):
    """Examples of files that know where each of them is."""

    def place_of(self, index: int) -> str: ...


def _place(examples: Any, index: int) -> str:
    return f" ({examples.place_of(index)})" if isinstance(examples, _Located) else ""


def batches(items: Iterator[Any]) -> Iterator[list[Any]]:
    """Yield lists of up to 1024 items."""
    while batch := list(itertools.islice(items, _BATCH)):
        yield batch


def pack(hooks: Any, documents: Documents, max_length: int, config: TokenDataConfig) -> Bins:
    """Pack documents with the hook ``pack_sequences``.

    Raises:
        DataError: when no plugin packs, or the bins are not valid.
    """
    packed = hooks.pack_sequences(lengths=documents.lengths, max_length=max_length, config=config)
    if packed is None:
        raise DataError(
            "data.pack_samples: no plugin packs sequences; enable hooktrain-sft or another that has pack_sequences"
        )
    bins = Bins.of(packed)
    check_bins(bins, documents.lengths, max_length)
    return bins
