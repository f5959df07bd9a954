"""Reading of sources: examples are loaded, converted, rendered, tokenized and written."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import attrs
import numpy as np
from numpy.typing import NDArray

from hooktrain import DataError, World, mask_text
from hooktrain_sft.compat import column_names, is_table
from hooktrain_sft.config import SFTDataConfig, SourceOptions, TokenDataConfig, paths_of, with_text_unit
from hooktrain_sft.data.arrow_store import Ids, Mask, StoreWriter
from hooktrain_sft.data.columns import how_to_use, read_columns
from hooktrain_sft.data.converters import known_formats
from hooktrain_sft.data.documents import Documents
from hooktrain_sft.data.formats import Format, choose_format, lacking, renamed_format, without_template
from hooktrain_sft.data.packing import Bins, check_bins
from hooktrain_sft.data.stateful_plugins import stateful_renderers
from hooktrain_sft.data.tokenize import Encoder
from hooktrain_sft.data.worker_pool import WorkerPool, number_of_workers

__all__ = ["OpenedSource", "Reader", "label_of", "not_used", "open_source", "pack", "unused_columns"]

_BATCH = 1024
"""Examples that are tokenized together: enough to keep the tokenizer's threads busy."""


_BEYOND = "is nested more deeply, or holds a larger number, than any example"
_NOT_USED = "column not used "
"""Beginning of a note about a column, before its name."""


def label_of(source: Any) -> str:
    """Return the name of a source for messages."""
    options = SourceOptions.of(source)
    return mask_text(str(options.name_or_path or options.name or type(source).__name__))


def unused_columns(notes: Iterable[str]) -> list[str]:
    """Return the columns that are not used, from the notes about a source's examples."""
    return [note.removeprefix(_NOT_USED) for note in notes if note.startswith(_NOT_USED)]


def not_used(source: Any, config: TokenDataConfig, columns: Sequence[str], format_name: str | None) -> str:
    """Return the message about columns that are not used, with what uses them where that is usual."""
    mapping = SourceOptions.of(source, config).role_mapping
    return f"columns not used: {', '.join(columns)}{how_to_use(columns, format_name, mapping)}"


@attrs.frozen
class OpenedSource:
    """A loaded source.

    Attributes:
        label: its name for messages.
        examples: the result of ``load_source``.
        format: the format of its examples, or None where they are rendered unchanged.
        total: the number of examples, or None for a stream.
        remarks: what to know about its format where the tokenizer has a chat template.
    """

    label: str
    examples: Any
    format: Format | None
    total: int | None
    remarks: tuple[str, ...] = ()

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


def open_source(source: Any, config: TokenDataConfig, world: World, hooks: Any) -> OpenedSource:
    """Load a source and choose the format of its examples.

    Raises:
        DataError: when no plugin loads it, it has no examples, or their format is not known.
    """
    label = label_of(source)
    examples = hooks.load_source(config=with_text_unit(source, config), world=world)
    if examples is None:
        raise DataError(f"{label}: no plugin loads a {type(source).__name__}; install or enable one that does")
    total = len(examples) if isinstance(examples, Sized) else None
    first = next(iter(OpenedSource(label, examples, None, total)), None)
    if first is None:
        raise DataError(
            f"{label}: given no examples, expected at least one; check the name and the split of the source"
        )
    found = _format(source, examples, first, label, config, hooks)
    plain = "" if found is None else without_template(found, first, SourceOptions.of(source, config))
    return OpenedSource(label, examples, found, total, (plain,) if plain else ())


def _format(source: Any, examples: Any, first: Any, label: str, config: TokenDataConfig, hooks: Any) -> Format | None:
    options = SourceOptions.of(source, config)
    if not isinstance(config, SFTDataConfig) and not options.columns:
        return None
    if not isinstance(first, Mapping):
        raise DataError(
            f"{label}, example 0: given a {type(first).__name__}, expected a mapping of column names to values"
        )
    columns = _columns(options, examples, first)
    try:
        if not isinstance(config, SFTDataConfig):
            return renamed_format(columns, options.columns)
        return choose_format(columns, first, source, config, known_formats(source, config, hooks))
    except RecursionError as problem:
        raise DataError(f"{label}, example 0: {_BEYOND} ({problem}); correct or remove the example") from problem
    except DataError as problem:
        if len(hooks.render_example.get_hookimpls()) > 1:
            return None  # another plugin renders examples, and may know the format
        assert isinstance(config, SFTDataConfig)
        some = itertools.islice(OpenedSource("", examples, None, None), 100)
        lacks = ""
        with contextlib.suppress(DataError):  # one of the others cannot be read, which is not what is wrong here
            lacks = lacking(columns, some, source, config, known_formats(source, config, hooks))
        if lacks:
            raise DataError(f"{label}, example 0: {lacks}") from problem
        raise DataError(f"{label}: {problem}") from problem


def _columns(options: SourceOptions, examples: Any, first: Mapping[str, Any]) -> list[str]:
    """Return the source's columns: of examples that have each their own, at least those that the recipe names."""
    columns = dict.fromkeys(str(column) for column in column_names(examples) or first)
    renamed = [ours if theirs is None else theirs for ours, theirs in options.columns.items()]
    paths = [*renamed, *paths_of(options.role_mapping)]
    named = {path.partition(".")[0] for path in paths} - set(columns)
    most = None if isinstance(examples, Sized) else _BATCH
    for example in itertools.islice(OpenedSource("", examples, None, None), most) if named else ():
        columns |= dict.fromkeys(name for name in named if name in example)
        if named <= columns.keys():
            break
    return list(columns)


class Prepared(NamedTuple):
    """Consecutive examples, tokenized.

    Attributes:
        ids: shape (tokens,).
        mask: the trained ones, or their weights, shape (tokens,).
        lengths: tokens of each sequence, shape (sequences,).
        sequences: number of sequences of each example, shape (examples,).
        notes: for each kind of note how often, and where first.
    """

    ids: Ids
    mask: Mask
    lengths: NDArray[np.int64]
    sequences: NDArray[np.int64]
    notes: Mapping[str, tuple[int, str]]


class Reader:
    """Reader of the sources of a recipe."""

    def __init__(self, config: TokenDataConfig, tokenizer: Any, world: World, hooks: Any) -> None:
        self.config, self.tokenizer, self.world, self.hooks = config, tokenizer, world, hooks
        self.encoder = Encoder(tokenizer)

    def open(self, source: Any) -> OpenedSource:
        """Load a source and choose the format of its examples, see :func:`open_source`."""
        opened = open_source(source, self.config, self.world, self.hooks)
        return opened if self.tokenizer.chat_template else attrs.evolve(opened, remarks=())

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
            except (RecursionError, OverflowError) as problem:
                raise DataError(
                    f"{opened.label}, example {index}{_place(opened.examples, index)}: {_BEYOND} ({problem}); correct"
                    " or remove the example"
                ) from problem
            unused = (*unused, *made.unused)
            if unused and only_ours:
                made = attrs.evolve(made, notes=(*made.notes, *(f"column: {_NOT_USED}{name}" for name in unused)))
            yield made

    def prepare(self, opened: OpenedSource, examples: Sequence[Any], first: int) -> Prepared:
        """Render and tokenize consecutive examples, the first of which has the number ``first``."""
        return self._tokenize(list(self.render(opened, examples, first)), first)

    def _tokenize(self, rendered: Sequence[Any], first: int) -> Prepared:
        ids, mask, lengths = self.encoder.flat(rendered)
        sequences = np.fromiter((len(example.sequences) or 1 for example in rendered), np.int64, len(rendered))
        return Prepared(ids, mask, lengths, sequences, _notes(rendered, first))

    def write(
        self,
        opened: OpenedSource,
        writer: StoreWriter,
        progress: AbstractContextManager[Callable[[int], None]] | None = None,
        shared_by: int = 1,
    ) -> Mapping[str, Any]:
        """Write all examples, prepared on ``data.num_proc`` processes; what is written is the same for any number.

        Args:
            opened: the source.
            writer: writer of the tokens.
            progress: entered when the processes have been started; called with the number of examples done so far.
            shared_by: ranks that do this at the same time.

        Returns:
            Facts for the report.
        """
        workers = number_of_workers(self.config.num_proc, opened.total, shared_by)
        notes: dict[str, tuple[int, str]] = {}
        remarks: list[str] = []
        if workers > 1 and (stateful := stateful_renderers(self.hooks, opened.format)):
            if self.config.num_proc == "auto":
                workers = 1
            else:
                remarks.append(
                    f"{', '.join(stateful)}: what it changes in its attributes while it renders is lost with the"
                    " processes that render; write `data.num_proc: 1` if it does"
                )
        sequences: list[NDArray[np.int64]] = []
        with contextlib.ExitStack() as stack:
            made = self._on_one_process(opened)
            if workers > 1:
                prepare = functools.partial(self.prepare, opened)
                try:
                    pool = stack.enter_context(WorkerPool(workers, prepare, opened.label, opened.total))
                    made = self._on_several_processes(opened, pool)
                except OSError as problem:  # a limit of memory or of processes
                    if self.config.num_proc != "auto":
                        raise DataError(
                            f"data.num_proc: given {workers}, but these processes cannot be started"
                            f" ({problem.strerror}); write `data.num_proc: 1`"
                        ) from problem
            advance = None if progress is None else stack.enter_context(progress)
            for part in made:
                writer.add(part.ids, part.mask, part.lengths)
                notes = _sum((notes, part.notes))
                sequences.append(part.sequences)
                if advance is not None:
                    advance(sum(map(len, sequences)))
        shown = {what: {"count": count, "first": first} for what, (count, first) in notes.items()}
        counts = np.concatenate(sequences) if sequences else np.zeros(0, np.int64)
        facts = self.facts(opened) | {"rows": len(counts), "tokens": writer.tokens, "notes": shown}
        facts["remarks"] += remarks
        return facts if (counts == 1).all() else facts | {"sequences": counts.tolist()}

    def _on_one_process(self, opened: OpenedSource) -> Iterator[Prepared]:
        """Yield prepared batches; one is tokenized in the background while the next is rendered."""
        first = 0
        waiting: Future[Prepared] | None = None
        with ThreadPoolExecutor(1, "hooktrain-tokenize") as background:
            for batch in batches(self.render(opened, opened)):
                submitted = background.submit(self._tokenize, batch, first)
                first += len(batch)
                if waiting is not None:
                    yield waiting.result()
                waiting = submitted
            if waiting is not None:
                yield waiting.result()

    def _on_several_processes(self, opened: OpenedSource, pool: WorkerPool[Prepared]) -> Iterator[Prepared]:
        """Yield prepared batches of the same size as on one process."""
        made = pool.map(iter(opened))
        while parts := list(itertools.islice(made, _BATCH // pool.unit)):
            ids, mask, lengths, sequences, notes = zip(*parts, strict=True)
            join = np.concatenate
            yield Prepared(join(ids), join(mask), join(lengths), join(sequences), _sum(notes))

    def facts(self, opened: OpenedSource) -> dict[str, Any]:
        """Return the facts about a source for the report."""
        return {
            "source": opened.label,
            "format": opened.format.name if opened.format else None,
            "why": opened.format.why if opened.format else None,
            "remarks": [*opened.remarks, *(opened.examples.remarks if isinstance(opened.examples, _Remarked) else ())],
        }


def _notes(rendered: Sequence[Any], first: int) -> dict[str, tuple[int, str]]:
    """Count the notes of examples, with the place of the first of each kind."""
    notes: dict[str, tuple[int, str]] = {}
    for index, example in enumerate(rendered, first):
        for note in example.notes:
            where, _, what = note.partition(": ")  # what follows may write `key: value`
            count, place = notes.get(what, (0, f"example {index}, {where}"))
            notes[what] = count + 1, place
    return notes


def _sum(parts: Iterable[Mapping[str, tuple[int, str]]]) -> dict[str, tuple[int, str]]:
    """Add the notes of consecutive examples."""
    notes: dict[str, tuple[int, str]] = {}
    for part in parts:
        for what, (count, place) in part.items():
            before, first = notes.get(what, (0, place))
            notes[what] = before + count, first
    return notes


@runtime_checkable
class _Remarked(Protocol):
    """Examples about whose reading there is something to report."""

    remarks: Sequence[str]


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
    """Pack documents with the hook ``pack_sequences``; those that stay together are packed as one.

    Raises:
        DataError: when no plugin packs, or the bins are not valid.
    """
    each = max(1, config.together)  # of such an example all documents are there, one after the other
    lengths = documents.lengths.reshape(-1, each).sum(1)
    if not config.pack_samples:
        return Bins(np.arange(len(documents)), np.arange(0, len(documents) + 1, each))
    packed = hooks.pack_sequences(lengths=lengths, max_length=max_length, config=config)
    if packed is None:
        raise DataError(
            "data.pack_samples: no plugin packs sequences; enable hooktrain-sft or another that has pack_sequences"
        )
    bins = Bins.of(packed)
    check_bins(bins, lengths, max_length)
    return Bins((bins.order[:, None] * each + np.arange(each)).reshape(-1), bins.offsets * each)
