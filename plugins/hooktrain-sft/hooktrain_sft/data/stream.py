"""Rows that are never all there: read, rendered, shuffled and packed a block at a time, while training goes on.

A block is ``data.stream_buffer`` rows. Where a run is in a stream is known by where each source was when the current
block began, and how many of its rows have been trained on; a resume reads that one block again and no row before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import attrs
import numpy as np

from hooktrain import Batch, Data, DataError, Recipe, World, padding_batch
from hooktrain_sft.data.documents import Documents, TokenCount, fit
from hooktrain_sft.data.packed_dataset import PackedDataset
from hooktrain_sft.data.packing import Bins, check_bins
from hooktrain_sft.data.source_reader import Reader, SourceRows

__all__ = ["Stream", "StreamLoader"]

_UNKNOWN = 1 << 62
"""Length of a stream that has not come to its end."""


@attrs.frozen
class _Block:
    """Some rows of a stream, prepared.

    Attributes:
        rows: the documents or packs.
        order: in which they are trained on.
        before: where the sources were when the block began.
        number: of the block in its epoch.
        count: what became of its tokens.
    """

    rows: PackedDataset
    order: list[int]
    before: dict[str, Any]
    number: int
    count: TokenCount


class Stream:
    """The rows of sources that stream; a data set whose length is known only when it has come to its end.

    Attributes:
        count: what became of the tokens of all blocks so far.
    """

    def __init__(self, reader: Reader, sources: Sequence[Any], max_length: int) -> None:
        self.reader, self.config, self.max_length = reader, reader.config, max_length
        self.sources: list[SourceRows] = [reader.open(source) for source in sources]
        weights = [getattr(source, "weight", None) for source in sources]
        self.weights = None if weights[0] is None else np.array(weights, np.float64) / sum(weights)
        self.length = _UNKNOWN
        self.count = TokenCount()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        raise TypeError("the rows of a stream have no numbers; read them through the loader")

    def blocks(self, epoch: int, before: Mapping[str, Any] | None = None) -> Iterator[_Block]:
        """Blocks from the beginning of an epoch, or from where one began."""
        state = dict(before) if before else {"number": 0, "sources": [None] * len(self.sources), "ended": []}
        cursors = [
            _Cursor(source, epoch, self.config.seed if self.config.shuffle else None, at)
            for source, at in zip(self.sources, state["sources"], strict=True)
        ]
        ended = set(state["ended"])
        number = int(state["number"])
        while len(ended) < len(cursors):
            begun = {"number": number, "sources": [c.state() for c in cursors], "ended": sorted(ended)}
            generator = np.random.default_rng([self.config.seed, epoch, number])
            encoded = self._read(cursors, ended, generator)
            number += 1
            if len(encoded.rows):
                yield self._finish(encoded, begun, number - 1, generator)

    def _read(self, cursors: Sequence[_Cursor], ended: set[int], generator: np.random.Generator) -> Documents:
        """The next rows, drawn from the sources by weight, or from one after the other where there are none."""
        size = self.config.stream_buffer
        if self.weights is not None:
            turns = generator.choice(len(cursors), size, p=self.weights).tolist()
        else:
            turns = [min(set(range(len(cursors))) - ended)] * size
        parts, rendered = [], []
        for turn in turns:
            row = cursors[turn].next()
            if row is None:
                ended.add(turn)
                if len(ended) == len(cursors) or self.weights is None:
                    break
                row = cursors[turn].again()  # its share goes on until every source has been read once
            index, value = row
            rendered += list(self.reader.render(self.sources[turn], [value], index))
            if len(rendered) == 1024:
                parts.append(self.reader.encoder.flat(rendered))
                rendered = []
        parts.append(self.reader.encoder.flat(rendered))
        ids, masks, lengths = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return Documents.of_flat(ids, masks, lengths)

    def _finish(
        self, documents: Documents, before: dict[str, Any], number: int, generator: np.random.Generator
    ) -> _Block:
        config = self.config
        fitted, count = fit(
            documents, self.max_length, config.overflow, config.on_empty, f"block {number} of the stream"
        )
        bins = None
        if config.pack_samples:
            packed = self.reader.hooks.pack_sequences(lengths=fitted.lengths, max_length=self.max_length, config=config)
            bins = Bins.of(packed)
            check_bins(bins, fitted.lengths, self.max_length)
        rows = PackedDataset(fitted, bins)
        order = generator.permutation(len(rows)) if config.shuffle else np.arange(len(rows))
        return _Block(rows, order.tolist(), before, number, count)


class _Cursor:
    """A place in one source."""

    def __init__(self, source: SourceRows, epoch: int, seed: int | None, at: Any) -> None:
        self._source, self._epoch, self._seed = source, epoch, seed
        self._round = int(at["round"]) if at else 0
        self._index = 0
        self._rows: Any = None
        self._iterator: Iterator[Any] = iter(())
        self._begin(at)

    def _begin(self, at: Any) -> None:
        rows = self._source.rows
        if self._seed is not None and hasattr(rows, "shuffle"):
            # the order of the files; rows are shuffled within a block
            rows = rows.shuffle(seed=self._seed + self._epoch * 1009 + self._round, buffer_size=1)
        if at and at.get("state") is not None:
            rows.load_state_dict(at["state"])
        self._rows, self._iterator = rows, iter(rows)
        self._index = int(at["index"]) if at else 0
        if at and at.get("state") is None:  # a source that cannot say where it is can only be read again
            for _ in range(self._index):
                next(self._iterator)

    def state(self) -> dict[str, Any]:
        known = self._rows.state_dict() if hasattr(self._rows, "state_dict") else None
        return {"round": self._round, "index": self._index, "state": known}

    def next(self) -> tuple[int, Any] | None:
        for row in self._iterator:
            self._index += 1
            return self._index - 1, row
        return None

    def again(self) -> tuple[int, Any]:
        """The first row of the next round."""
        self._round += 1
        self._begin(None)
        found = self.next()
        if found is None:
            raise DataError(f"{self._source.label}: has no rows when it is read again, expected those of before")
        return found


class StreamLoader:
    """Hands out windows of a stream; every rank reads the whole stream and takes its own micro-batches."""

    def __init__(self, dataset: Any, data: Data, recipe: Recipe, world: World) -> None:
        if recipe.train_iters is None or recipe.epochs is not None:
            raise DataError(
                "data.sources: a streaming source has no known length, so that the run's is not known either; write"
                " train_iters, the number of optimizer steps, and leave epochs out"
            )
        self.dataset: Stream = dataset
        self.data, self.world = data, world
        self.micro = recipe.micro_batch_size
        self.window = recipe.micro_batch_size * recipe.gradient_accumulation_steps * world.world_size
        self._place: dict[str, Any] | None = None
        self._resumed: dict[str, Any] | None = None

    def __len__(self) -> int:
        """Windows of an epoch: at least one; how many more is not known."""
        return 1

    def place(self) -> dict[str, Any] | None:
        """Where the stream is after the windows that were handed out; plain values."""
        return self._place

    def go_to(self, place: Mapping[str, Any]) -> None:
        """Begin the next epoch's windows at a place of before."""
        self._resumed = dict(place)

    def windows(self, epoch: int, start: int = 0) -> Iterator[tuple[int, list[Batch]]]:
        """This rank's share of each window, as in ``WindowLoader``."""
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
                while not ended and len(waiting) < self.window:
                    block = ahead.result()
                    if block is None:
                        ended = True
                        break
                    ahead = background.submit(next, blocks, None)
                    _add(self.dataset.count, block.count)
                    waiting += [(block, at) for at in range(skipped, len(block.order))]
                    skipped = 0
                chosen, waiting = waiting[: self.window], waiting[self.window :]
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
            rows = [block.rows[block.order[number]] for block, number in mine or chosen[:1]]
            batch = self.data.collate(rows)
            batches.append(batch if mine else padding_batch(batch))
        return batches


def _add(total: TokenCount, more: TokenCount) -> None:
    for item in attrs.fields(TokenCount):
        ours, theirs = getattr(total, item.name), getattr(more, item.name)
        setattr(total, item.name, max(ours, theirs) if item.name == "longest" else ours + theirs)
