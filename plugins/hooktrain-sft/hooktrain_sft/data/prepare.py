"""From sources to data sets: read, divide, fit, mix, pack, and account for every token."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from hooktrain import Data, DataError, World
from hooktrain_sft.config import TokenDataConfig
from hooktrain_sft.data.collate import collate_flat, collate_stacked
from hooktrain_sft.data.documents import Documents, TokenCount, fit
from hooktrain_sft.data.fingerprint import row_fingerprint
from hooktrain_sft.data.mixing import mix, order_by_length
from hooktrain_sft.data.packed_dataset import PackedDataset
from hooktrain_sft.data.packing import Bins, check_bins
from hooktrain_sft.data.row_cache import CachedRows, RowCache, default_cache_dir
from hooktrain_sft.data.source_reader import Reader, label_of
from hooktrain_sft.data.statistics import doubled_bos, duplicates, ends_trained, histogram, shared

__all__ = ["named", "prepare_data", "row_limit"]


def prepare_data(config: TokenDataConfig, tokenizer: Any, world: World, hooks: Any) -> Data:
    """Build the data sets that a recipe asks for.

    Raises:
        DataError: when a row cannot be used and the recipe does not say to leave it out.
    """
    return _Preparation(config, tokenizer, world, hooks).run()


class _Preparation:
    """One call of ``prepare_data``."""

    def __init__(self, config: TokenDataConfig, tokenizer: Any, world: World, hooks: Any) -> None:
        self.config, self.tokenizer, self.world, self.hooks = config, tokenizer, world, hooks
        self.reader = Reader(config, tokenizer, world, hooks)
        self.cache = RowCache((config.cache_dir or default_cache_dir()) if config.use_data_cache else None, self.warn)
        self.max_length = config.max_length or row_limit(tokenizer)
        self.warnings: list[str] = []
        self.sources: list[dict[str, Any]] = []
        self.digests: list[str] = []

    def warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)
            if self.world.is_main:
                print(f"hooktrain: {message}", file=sys.stderr, flush=True)

    def run(self) -> Data:
        config = self.config
        streams = [bool(getattr(source, "streaming", False)) for source in config.sources]
        if any(streams):
            return self.stream(streams)
        parts = [self.read(source, "train") for source in config.sources]
        bounds = np.cumsum([0, *map(len, parts)])
        train = Documents.join(parts)
        evaluation = {name: self.read(source, name) for name, source in named(config.eval_sources)}
        if config.train_eval_split[1] > 0:
            train, evaluation["eval"] = _divide(train, config.train_eval_split[1], config.seed)
        train_set, train_facts = self.finish(train, "data.sources", bounds)
        of_train = "-".join(self.digests)
        evaluation_sets, evaluation_facts = {}, {}
        for name, documents in evaluation.items():
            evaluation_sets[name], evaluation_facts[name] = self.finish(documents, f"evaluation set '{name}'")
        self.look(train_set.documents, {name: rows.documents for name, rows in evaluation_sets.items()})
        for fact, facts in [(train_facts, train_set), *((evaluation_facts[n], r) for n, r in evaluation_sets.items())]:
            fact["histograms"] = {"tokens of a row": histogram(facts.documents.lengths)}
            if facts.bins is not None:
                fact["histograms"]["tokens of a pack"] = histogram(facts.lengths)
        summary = [_summary(train_facts, self.max_length)]
        summary += [f"{name}: {facts['rows_kept']:,} rows" for name, facts in evaluation_facts.items()]
        return Data(
            train=train_set,
            evaluation=evaluation_sets,
            collate=collate_stacked if config.pack_samples else collate_flat,
            shuffle=config.shuffle,
            workers=config.workers,
            report={
                "summary": "; ".join(summary),
                "max_length": self.max_length,
                "sources": self.sources,
                "train": train_facts,
                "evaluation": evaluation_facts,
                "warnings": self.warnings,
            },
            fingerprint="-".join(self.digests),
            train_fingerprint=of_train,
            order=order_by_length(train_set.lengths) if config.group_by_length else None,
        )

    def stream(self, streams: Sequence[bool]) -> Data:
        """Data whose training rows are read while training."""
        from hooktrain_sft.data.stream import Stream, StreamLoader

        config = self.config
        for refused, given, advice in (
            (not all(streams), "sources of which only some are streaming", "stream all of them or none"),
            (config.train_eval_split[1] > 0, "train_eval_split with a stream", "use eval_sources"),
            (config.group_by_length, "group_by_length with a stream", "leave one out"),
        ):
            if refused:
                raise DataError(f"data: given {given}, which cannot be; {advice}")
        evaluation, facts = {}, {}
        for name, source in named(config.eval_sources):
            documents = self.read(source, name)
            evaluation[name], facts[name] = self.finish(documents, f"evaluation set '{name}'")
        train = Stream(self.reader, config.sources, self.max_length)
        for opened in train.sources:
            self.sources.append({**self.reader.facts(opened), "use": "train", "streaming": True})
        labels = ", ".join(opened.label for opened in train.sources)
        return Data(
            train=train,
            evaluation=evaluation,
            collate=collate_stacked if config.pack_samples else collate_flat,
            shuffle=config.shuffle,
            report={
                "summary": f"a stream of {labels}, {config.stream_buffer:,} rows at a time",
                "max_length": self.max_length,
                "sources": self.sources,
                "evaluation": facts,
                "warnings": self.warnings,
            },
            fingerprint="-".join(["stream", *self.digests]),
            loader=StreamLoader,
        )

    def read(self, source: Any, use: str) -> Documents:
        """All rows of a source as documents, one each."""
        label = label_of(source)
        if getattr(source, "streaming", False):
            raise DataError(f"{label}: an evaluation source cannot stream; leave streaming out, and give it a slice")
        fingerprint, why_not = row_fingerprint(source, self.config, self.tokenizer, self.world, self.hooks)

        def prepare(writer: Any) -> Mapping[str, Any]:
            opened = self.reader.open(source)
            with self.progress(label, opened.total) as progress:
                return self.reader.write(opened, writer, progress)

        made: CachedRows = self.cache.rows(fingerprint, prepare)
        for note, where in made.facts.get("notes", {}).items():
            self.warnings.append(f"{label}: {note} ({where['count']:,} times, first in {where['first']})")
        facts = {**made.facts, "use": use, "cached": made.found, "path": made.path and str(made.path)}
        if why_not and self.config.use_data_cache:
            facts["not_cached"] = why_not
        self.sources.append(facts)
        return Documents.of_store(made.store)

    @contextmanager
    def progress(self, label: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """A bar on a terminal, while rows are prepared."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        bar = Progress(
            TextColumn("preparing {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not (self.world.is_main and console.is_terminal),
        )
        with bar:
            task = bar.add_task(label, total=total)
            yield lambda done: bar.update(task, completed=done)

    def finish(
        self, documents: Documents, where: str, bounds: NDArray[np.int64] | None = None
    ) -> tuple[PackedDataset, dict[str, Any]]:
        """Fit, mix and pack the documents of a set; returns it with facts about it."""
        config = self.config
        fitted, count = fit(documents, self.max_length, config.overflow, config.on_empty, where)
        self.warnings += _losses(count, self.max_length, where)
        facts: dict[str, Any] = attrs.asdict(count)
        weights = [getattr(source, "weight", None) for source in config.sources]
        if bounds is not None and weights[0] is not None:
            fitted, mixture = mix(fitted, bounds.tolist(), weights, config.seed)
            facts["mixture"] = attrs.asdict(mixture)
            for source, rows in zip(self.sources, mixture.rows, strict=False):
                source["epoch_rows"] = rows
            if mixture.left_out:
                self.warnings.append(
                    f"{where}: the weights leave {mixture.left_out:,} of {count.rows_kept:,} rows out of the epoch, and"
                    f" repeat {mixture.repeated:,}"
                )
        bins = self.pack(fitted) if config.pack_samples else None
        self.digests.append(fitted.digest())
        if bins is not None:
            self.digests.append(bins.digest())
            tokens = int(fitted.lengths.sum())
            facts |= {"bins": len(bins), "filled": round(tokens / (len(bins) * self.max_length), 4)}
        return PackedDataset(fitted, bins), facts

    def pack(self, documents: Documents) -> Bins:
        bins = self.hooks.pack_sequences(lengths=documents.lengths, max_length=self.max_length, config=self.config)
        if bins is None:
            raise DataError(
                "data.pack_samples: no plugin packs rows; enable hooktrain-sft or another that has pack_sequences"
            )
        packed = Bins.of(bins)
        check_bins(packed, documents.lengths, self.max_length)
        return packed

    def look(self, train: Documents, evaluation: Mapping[str, Documents]) -> None:
        """Warn of what is usually a mistake in the data or in the template."""
        if not ends_trained(train, self.tokenizer):
            self.warnings.append(
                "no end-of-turn or end-of-sequence token is trained, so that the model will not learn to stop; check"
                " the chat template and, if it has {% generation %}, that the block includes the end of the turn"
            )
        if twice := doubled_bos(train, self.tokenizer):
            self.warnings.append(
                f"data.sources: {twice:,} rows begin with two beginning-of-sequence tokens; remove the one that is in"
                " the rows' own text"
            )
        if again := duplicates(train):
            self.warnings.append(
                f"data.sources: {again:,} rows are the same as an earlier one; remove them if unwanted"
            )
        for name, documents in evaluation.items():
            if seen := shared(documents, train):
                self.warnings.append(
                    f"evaluation set '{name}': {seen:,} of {len(documents):,} rows are also trained on, so that its"
                    " loss says less than it seems; remove them from one of the two"
                )


def _summary(facts: Mapping[str, Any], max_length: int) -> str:
    """The figures of a set in one line."""
    share = facts["tokens_trained"] / max(1, facts["tokens_kept"])
    packs = f", {facts['bins']:,} packs of {max_length:,} ({facts['filled']:.1%} full)" if "bins" in facts else ""
    return f"{facts['rows_kept']:,} rows, {facts['tokens_kept']:,} tokens ({share:.0%} trained){packs}"


def named(sources: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Each evaluation source with a name that no other has: its own, or the last part of what it loads."""
    taken: set[str] = set()
    for source in sources:
        name = getattr(source, "name", None) or PurePosixPath(label_of(source)).stem or "eval"
        unique = next(n for n in (name, *(f"{name}-{i}" for i in range(2, len(sources) + 2))) if n not in taken)
        taken.add(unique)
        yield unique, source


def _divide(documents: Documents, share: float, seed: int) -> tuple[Documents, Documents]:
    """Training and evaluation rows, drawn by ``seed``; both keep their order and neither is empty."""
    if len(documents) < 2:
        raise DataError(
            f"data.train_eval_split: given {len(documents)} row, expected at least 2; use eval_sources instead"
        )
    held = min(max(round(len(documents) * share), 1), len(documents) - 1)
    order = np.random.default_rng(seed).permutation(len(documents))
    return documents.select(np.sort(order[held:])), documents.select(np.sort(order[:held]))


def row_limit(tokenizer: Any) -> int:
    """Tokens that the tokenizer says its model takes; transformers writes a huge number where it does not know."""
    limit = getattr(tokenizer, "model_max_length", None) or 0
    return int(limit) if 2 <= limit < 1_000_000 else 8192


def _losses(count: TokenCount, max_length: int, where: str) -> list[str]:
    """Warnings when rows were dropped or cut."""
    lost = count.tokens_dropped + count.tokens_truncated
    if not lost:
        return []
    warnings = [
        f"{where}: {lost} of {count.tokens_in} tokens are not trained with ({count.rows_in - count.rows_kept} of"
        f" {count.rows_in} rows dropped, {count.tokens_truncated} tokens truncated); {count.rows_too_long} rows were"
        f" longer than max_length {max_length}, in {count.rows_empty} nothing was trained"
    ]
    if count.rows_answer_cut:
        warnings.append(
            f"{where}: {count.rows_answer_cut} rows have lost a part of their answers, so that the model learns to stop"
            " short; raise `data.max_length`, or write `data.overflow: drop`"
        )
    return warnings
