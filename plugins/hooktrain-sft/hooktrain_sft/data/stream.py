"""Streams of examples that are read, rendered, shuffled and packed a block at a time while training.

A block is ``data.stream_buffer`` examples. A run's place in a stream is the place of each source at the start of the
current block, and the number of the block's sequences that are trained. A resume reads only that block again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import attrs
import numpy as np

from hooktrain import Batch, Data, DataError, Recipe, World, padding_batch
from hooktrain_sft.data.documents import Documents, Place, TokenCount, fit, require_some
from hooktrain_sft.data.packed_dataset import PackedDataset
from hooktrain_sft.data.source_reader import OpenedSource, Reader, not_used, pack, unused_columns
from hooktrain_sft.data.statistics import losses

__all__ = ["Stream", "StreamLoader"]

_UNKNOWN = 1 << 62
"""Length of a stream whose end has not been reached."""
_JUDGED = 10_000
"""Examples by which the share of dropped ones is judged, before a stream that has fewer so far has ended."""


@attrs.frozen
class _Block:
    """A prepared block of a stream.

    Attributes:
        sequences: the documents or packs.
        order: the order in which they are trained.
        before: the place of the sources at the start of the block.
        count: counts of its tokens, and of those of earlier blocks of which nothing is left.
    """

    sequences: PackedDataset
    order: list[int]
    before: dict[str, Any]
    count: TokenCount


class Stream:
    """Examples of streaming sources; a data set whose length is not known before its end.

    Attributes:
        count: counts of the tokens of all blocks so far.
    """

    def __init__(
        self,
        reader: Reader,
        sources: Sequence[Any],
        max_length: int,
        positions: int | None = None,
        say: Callable[[str], None] = lambda message: None,
    ) -> None:
        """Open the sources; ``say`` is called with messages for the user while they are read."""
        self.reader, self.config, self._say = reader, reader.config, say
        self.max_length, self.positions = max_length, positions
        self.sources: list[OpenedSource] = [reader.open(source) for source in sources]
        weights = self.config.source_weights
        self.shares = None if weights is None else np.array(weights, np.float64) / sum(weights)
        self.length = _UNKNOWN
        self.count = TokenCount()
        self._told: set[tuple[int, str]] = set()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        raise TypeError("the sequences of a stream have no numbers; read them through the loader")

    def blocks(self, epoch: int, before: Mapping[str, Any] | None = None) -> Iterator[_Block]:
        """Yield blocks from the beginning of an epoch, or from the start of a block."""
        state: Mapping[str, Any] = before or {"number": 0, "sources": [None] * len(self.sources), "ended": []}
        cursors = [
            _Cursor(source, epoch, self.config.seed if self.config.shuffle else None, at)
            for source, at in zip(self.sources, state["sources"], strict=True)
        ]
        ended = set(state["ended"])
        number = int(state["number"])
        seen = TokenCount(**state.get("counts", {}))
        said, pending = 0, TokenCount()
        first_empty: Place | None = None
        while len(ended) < len(cursors):
            begun = {"number": number, "sources": [c.state() for c in cursors], "ended": sorted(ended)}
            begun["counts"] = attrs.asdict(seen)
            generator = np.random.default_rng([self.config.seed, epoch, number])
            encoded, names = self._read(cursors, ended, generator)
            number += 1
            # dropped examples are judged by a share of the stream, which its first few do not tell
            judged = 0 if len(ended) == len(cursors) else _JUDGED
            block = self._finish(encoded, names, begun, seen, judged, generator)
            empty = np.flatnonzero(encoded.supervised == 0)
            first_empty = first_empty or (names(int(empty[0])) if len(empty) else None)
            seen, pending = seen + block.count, pending + block.count
            lost = seen.rows_in - seen.rows_kept + seen.tokens_truncated
            if lost > 2 * said:
                said = lost
                self._report(seen, "the stream so far", first_empty)
            if len(block.sequences):
                yield attrs.evolve(block, count=pending)
                pending = TokenCount()
        self._report(seen, "the complete stream", first_empty)
        require_some(seen, self.max_length, "data.sources, the complete stream")

    def _report(self, seen: TokenCount, where: str, first_empty: Place | None) -> None:
        """Say what of the stream is not used."""
        for message in losses(seen, self.config.overflow, self.max_length, f"data.sources, {where}", first_empty):
            self._say(message)

    def _read(
        self, cursors: Sequence[_Cursor], ended: set[int], generator: np.random.Generator
    ) -> tuple[Documents, Callable[[int], Place]]:
        """Read the next block, from the sources by weight, or from one after the other where they have none.

        Returns:
            Its documents, and a function that names the example of each.
        """
        size = self.config.stream_buffer
        if self.shares is not None:
            chosen = generator.choice(len(cursors), size, p=self.shares).tolist()
        else:
            chosen = [min(set(range(len(cursors))) - ended)] * size
        parts, rendered, origins = [], [], []
        for source in chosen:
            found = cursors[source].next()
            if found is None:
                ended.add(source)
                if len(ended) == len(cursors) or self.shares is None:
                    break
                found = cursors[source].restart()  # it keeps its share until every source has been read once
            index, example = found
            made = list(self.reader.render(self.sources[source], [example], index))
            for one in made:
                self._tell(source, one.notes)
            rendered += made
            origins += [(source, index)] * sum(len(one.sequences) or 1 for one in made)
            if len(rendered) >= 1024:
                parts.append(self.reader.encoder.flat(rendered))
                rendered = []
        parts.append(self.reader.encoder.flat(rendered))
        ids, masks, lengths = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))

        def name(document: int) -> Place:
            source, index = origins[document]
            return Place(self.sources[source].label, index)

        return Documents.of_flat(ids, masks, lengths), name

    def _tell(self, source: int, notes: Sequence[str]) -> None:
        """Print which columns of a source are not used, each once."""
        names = unused_columns(note.partition(": ")[2] for note in notes) if notes else ()
        if found := [name for name in names if (source, name) not in self._told]:
            self._told.update((source, name) for name in found)
            opened = self.sources[source]
            message = not_used(
                self.config.sources[source], self.config, found, opened.format.name if opened.format else None
            )
            if self.reader.world.is_main:
                print(f"hooktrain: {opened.label}: {message}", file=sys.stderr, flush=True)

    def _finish(
        self,
        documents: Documents,
        name: Callable[[int], Place],
        before: dict[str, Any],
        seen: TokenCount,
        judged: int,
        generator: np.random.Generator,
    ) -> _Block:
        config = self.config
        fitted, count = fit(
            *(documents, self.max_length, config.overflow, config.on_empty, "data.sources, the stream so far"),
            max_dropped=config.max_dropped,
            before=seen,
            at_least=judged,
            name=name,
            positions=self.positions,
        )
        packs = config.pack_samples and len(fitted) > 0
        bins = pack(self.reader.hooks, fitted, self.max_length, config) if packs else None
        sequences = PackedDataset(fitted, bins)
        order = generator.permutation(len(sequences)) if config.shuffle else np.arange(len(sequences))
        return _Block(sequences, order.tolist(), before, count)


@runtime_checkable
class _Shuffled(Protocol):
    """An iterable of examples that can be shuffled."""

    def shuffle(self, *, seed: int, buffer_size: int) -> Any: ...


@runtime_checkable
class _Stateful(Protocol):
    """An iterable of examples that knows its place."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Any) -> None: ...


class _Cursor:
    """A place in one source."""

    def __init__(self, source: OpenedSource, epoch: int, seed: int | None, at: Any) -> None:
        self._source, self._epoch, self._seed = source, epoch, seed
        self._round = int(at["round"]) if at else 0
        self._index = 0
        self._examples: Any = None
        self._iterator: Iterator[Any] = iter(())
        self._begin(at)

    def _begin(self, at: Any) -> None:
        examples = self._source.examples
        if self._seed is not None and isinstance(examples, _Shuffled):
            # the order of the files; examples are shuffled within a block
            examples = examples.shuffle(seed=self._seed + self._epoch * 1009 + self._round, buffer_size=1)
        if at and at.get("state") is not None:
            examples.load_state_dict(at["state"])
        self._examples, self._iterator = examples, iter(examples)
        self._index = int(at["index"]) if at else 0
        if at and at.get("state") is None:  # a source that does not know its place is read again from the beginning
            for _ in range(self._index):
                next(self._iterator)

    def state(self) -> dict[str, Any]:
        """Return the place as plain values."""
        known = self._examples.state_dict() if isinstance(self._examples, _Stateful) else None
        return {"round": self._round, "index": self._index, "state": known}

    def next(self) -> tuple[int, Any] | None:
        """Return the next example and its number; None at the end."""
        for example in self._iterator:
            self._index += 1
            return self._index - 1, example
        return None

    def restart(self) -> tuple[int, Any]:
        """Begin the next round and return its first example."""
        self._round += 1
        self._begin(None)
        found = self.next()
        if found is None:
            raise DataError(
                f"{self._source.label}: given no examples when read again, expected the same as before; fix the source"
            )
        return found


class StreamLoader:
    """Loader of a stream's batches; every rank reads the complete stream and takes its own micro-batches."""

    def __init__(self, dataset: Any, data: Data, recipe: Recipe, world: World) -> None:
        if recipe.train_iters is None or recipe.epochs is not None:
            raise DataError(
                "data.sources: a streaming source has no known length, so that the run's is not known either; write"
                " train_iters, the number of optimizer steps, and remove epochs"
            )
        self.dataset: Stream = dataset
        self.data, self.world = data, world
        self.micro = recipe.micro_batch_size
        self.per_step = recipe.micro_batch_size * recipe.gradient_accumulation_steps * world.world_size
        self._place: dict[str, Any] | None = None
        self._resumed: dict[str, Any] | None = None

    def __len__(self) -> int:
        """Return 1: an epoch has at least one step, and more are not known."""
        return 1

    def place(self) -> dict[str, Any] | None:
        """Return the place after the batches so far as plain values."""
        return self._place

    def go_to(self, place: Mapping[str, Any]) -> None:
        """Begin the next epoch at a saved place."""
        self._resumed = dict(place)

    def windows(self, epoch: int, start: int = 0) -> Iterator[tuple[int, list[Batch]]]:
        """Yield this rank's micro-batches of each step, as ``WindowLoader`` does."""
        place, self._resumed = self._resumed, None
        if start and (place is None or place["epoch"] != epoch):
            raise DataError(
                "data.sources: the checkpoint does not say where in the stream it was; go on without streaming, or"
                " from a checkpoint that was saved with hooktrain-sft"
            )
        if not start:
            place = None
        self.dataset.length, handed = _UNKNOWN, start
        skipped = int(place["done"]) if place else 0
        waiting: list[tuple[_Block, int]] = []
        with ThreadPoolExecutor(1, "hooktrain-stream") as background:
            blocks = self.dataset.blocks(epoch, place["before"] if place else None)
            ahead: Future[_Block | None] = background.submit(next, blocks, None)
            ended = False
            while True:
                while not ended and len(waiting) < self.per_step:
                    block = ahead.result()
                    if block is None:
                        ended = True
                        break
                    ahead = background.submit(next, blocks, None)
                    self.dataset.count += block.count
                    waiting += [(block, at) for at in range(skipped, len(block.order))]
                    skipped = 0
                chosen, waiting = waiting[: self.per_step], waiting[self.per_step :]
                if not chosen:
                    self.dataset.length = handed
                    break
                handed += len(chosen)
                if waiting:
                    block, at = waiting[0]
                    self._place = {"epoch": epoch, "before": block.before, "done": at}
                else:
                    block, at = chosen[-1]
                    self._place = {"epoch": epoch, "before": block.before, "done": at + 1}
                yield len(chosen), self._share(chosen)

    def _share(self, chosen: Sequence[tuple[_Block, int]]) -> list[Batch]:
        stride = self.micro * self.world.world_size
        batches = []
        for at in range(self.world.rank * self.micro, -(-len(chosen) // stride) * stride, stride):
            mine = chosen[at : at + self.micro]
            sequences = [block.sequences[block.order[number]] for block, number in mine or chosen[:1]]
            batch = self.data.collate(sequences)
            batches.append(batch if mine else padding_batch(batch))
        return batches
