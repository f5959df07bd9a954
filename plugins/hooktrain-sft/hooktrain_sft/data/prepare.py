"""Data sets from sources: read, split, fit, mix, pack, and account for every token."""

from __future__ import annotations

import bisect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray

from hooktrain import Data, DataError, World, default_cache_dir
from hooktrain_sft.compat import model_max_length
from hooktrain_sft.config import SFTDataConfig, SourceOptions, TokenDataConfig
from hooktrain_sft.data.arrow_store import UnwritableError
from hooktrain_sft.data.collate import collate_flat, collate_stacked
from hooktrain_sft.data.documents import Documents, Place, fit, require_some
from hooktrain_sft.data.fingerprint import SequenceFingerprints, stream_fingerprint
from hooktrain_sft.data.mixing import mix, order_by_length
from hooktrain_sft.data.packed_dataset import PackedDataset
from hooktrain_sft.data.row_cache import CachedSequences, SequenceCache
from hooktrain_sft.data.source_reader import Reader, label_of, not_used, pack, unused_columns
from hooktrain_sft.data.statistics import (
    doubled_bos,
    duplicates,
    ends_trained,
    histogram,
    losses,
    shared,
    without_duplicates,
)

__all__ = ["length_limit", "named", "prepare_data"]


def prepare_data(
    config: TokenDataConfig, tokenizer: Any, world: World, hooks: Any, positions: int | None = None
) -> Data:
    """Build the data sets of a recipe; ``positions`` is the most tokens that its model takes, if it has a limit.

    Raises:
        DataError: when an example cannot be used and the recipe does not drop it.
    """
    return _Preparation(config, tokenizer, world, hooks, positions).run()


class _Preparation:
    """One call of ``prepare_data``."""

    def __init__(
        self, config: TokenDataConfig, tokenizer: Any, world: World, hooks: Any, positions: int | None
    ) -> None:
        self.config, self.tokenizer, self.world, self.hooks = config, tokenizer, world, hooks
        self.reader = Reader(config, tokenizer, world, hooks)
        self.fingerprints = SequenceFingerprints(config, tokenizer, world, hooks)
        self.cache = SequenceCache(
            (config.cache_dir or default_cache_dir()) if config.use_data_cache else None, self.warn
        )
        self.max_length = length_limit(tokenizer, config, positions)
        self.positions = positions
        self.warnings: list[str] = []
        if positions is not None and config.max_length is not None and config.max_length > positions:
            self.warn(
                f"data.max_length: given {config.max_length}, but the model has positions for {positions} tokens;"
                f" {positions} is used"
            )
        self.sources: list[dict[str, Any]] = []
        self.digests: list[str] = []

    def warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)
            if self.world.is_main:
                print(f"hooktrain: {message}", file=sys.stderr, flush=True)

    def run(self) -> Data:
        config = self.config
        streams = [SourceOptions.of(source).streaming for source in config.sources]
        if any(streams):
            return self.stream(streams)
        parts = [self.read(source, "train") for source in config.sources]
        bounds = np.cumsum([0, *(int(part.examples.max(initial=-1)) + 1 for part in parts)])
        train = Documents.join(parts)
        evaluation = {name: self.read(source, name) for name, source in named(config.eval_sources)}
        removed: list[int] = []
        if config.exact_deduplication:
            train, *removed = without_duplicates(train)
            for name, documents in evaluation.items():
                evaluation[name], count = without_duplicates(documents, train)
                removed.append(count)
                if not len(evaluation[name]):
                    raise DataError(
                        f"evaluation set '{name}': all {count:,} examples are also trained on, and"
                        " data.exact_deduplication removes them; give other examples"
                    )
        if config.held_out:
            train, evaluation["eval"] = _split(train, config.held_out, config.seed)
        name_example = self.namer(bounds.tolist())
        train_set, train_facts = self.finish(train, "data.sources", name_example, bounds)
        of_train = "-".join(self.digests)
        evaluation_sets, evaluation_facts = {}, {}
        for name, documents in evaluation.items():
            given = (name_example,) if config.held_out else ()
            evaluation_sets[name], evaluation_facts[name] = self.finish(documents, f"evaluation set '{name}'", *given)
        for facts, count in zip((train_facts, *evaluation_facts.values()), removed, strict=False):
            facts["rows_duplicate"] = count  # a set that is held out has none of its own
        self.check(train_set.documents, {name: made.documents for name, made in evaluation_sets.items()})
        summary = [_summary(train_facts, self.max_length)]
        summary += [
            f"{name}: {facts['rows_kept']:,} examples{_duplicates(facts)}" for name, facts in evaluation_facts.items()
        ]
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
            lengths=torch.from_numpy(train_set.lengths.astype(np.int64)),
        )

    def stream(self, streams: Sequence[bool]) -> Data:
        """Return data whose training examples are read while training."""
        from hooktrain_sft.data.stream import Stream, StreamLoader

        config = self.config
        for refused, given, advice in (
            (not all(streams), "sources of which only some are streaming", "stream all of them or none"),
            (bool(config.held_out), "train_eval_split or val_size with a stream", "use eval_sources"),
            (config.group_by_length, "group_by_length with a stream", "remove one of them"),
            (config.exact_deduplication, "exact_deduplication with a stream", "remove one of them"),
            (bool(config.together), "pairs of sequences as a stream", "set streaming: false"),
        ):
            if refused:
                raise DataError(f"data: given {given}, which is not possible; {advice}")
        evaluation, facts = {}, {}
        for name, source in named(config.eval_sources):
            documents = self.read(source, name)
            evaluation[name], facts[name] = self.finish(documents, f"evaluation set '{name}'")
        train = Stream(self.reader, config.sources, self.max_length, self.positions, self.warn)
        for opened in train.sources:
            facts_of = self.reader.facts(opened)
            self.sources.append({**facts_of, "use": "train", "streaming": True})
            for remark in facts_of["remarks"]:
                self.warn(f"{opened.label}: {remark}")
        labels = ", ".join(opened.label for opened in train.sources)
        of_train = f"stream {stream_fingerprint(config, self.tokenizer, self.world, self.hooks)}"
        return Data(
            train=train,
            evaluation=evaluation,
            collate=collate_stacked if config.pack_samples else collate_flat,
            shuffle=config.shuffle,
            report={
                "summary": f"a stream of {labels}, {config.stream_buffer:,} examples at a time",
                "max_length": self.max_length,
                "sources": self.sources,
                "evaluation": facts,
                "warnings": self.warnings,
            },
            fingerprint="-".join([of_train, *self.digests]),
            train_fingerprint=of_train,
            loader=StreamLoader,
        )

    def read(self, source: Any, use: str) -> Documents:
        """Return all examples of a source as documents, one each."""
        label = label_of(source)
        if SourceOptions.of(source).streaming:
            raise DataError(f"{label}: an evaluation source cannot stream; remove streaming, and give it a slice")
        fingerprint, why_not = None, ""
        if self.config.use_data_cache:  # otherwise nothing needs it, and large files take a while
            fingerprint, why_not = self.fingerprints.of(source)

        def prepare(writer: Any) -> Mapping[str, Any]:
            shared_by = self.world.world_size if fingerprint is None else 1  # otherwise the others wait for this one
            try:
                opened = self.reader.open(source)
                facts = self.reader.write(opened, writer, self.progress(label, opened.total), shared_by)
            except UnwritableError:
                raise
            except OSError as problem:
                raise DataError(
                    f"{label}: cannot be read ({problem}); check the files, the disk and the permissions"
                ) from problem
            if fingerprint is not None and self.fingerprints.of(source)[0] != fingerprint:
                raise DataError(
                    f"{label}: has changed while it was read; expected a source that nobody writes to; start again when"
                    " it is complete"
                )
            return facts

        made: CachedSequences = self.cache.get(fingerprint, prepare)
        self.warnings += [f"{label}: {remark}" for remark in made.facts.get("remarks", ())]
        notes: Mapping[str, Any] = made.facts.get("notes", {})
        unused = unused_columns(notes)
        for note, where in notes.items():
            if not unused_columns([note]):
                self.warnings.append(f"{label}: {note} ({where['count']:,} times, first in {where['first']})")
        if unused:
            self.warnings.append(f"{label}: {not_used(source, self.config, unused, made.facts['format'])}")
        facts = {**made.facts, "use": use, "cached": made.found, "path": made.path and str(made.path)}
        if why_not:
            facts["not_cached"] = why_not
        self.sources.append(facts)
        return Documents.of_store(made.store, facts.pop("sequences", None))

    @contextmanager
    def progress(self, label: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """Show a progress bar on a terminal while examples are prepared."""
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

    def namer(self, bounds: Sequence[int]) -> Callable[[int], Place]:
        """Return a function that names a training example by its source and its number in it."""
        return partial(_name, [label_of(source) for source in self.config.sources], bounds)

    def finish(
        self,
        documents: Documents,
        where: str,
        name: Callable[[int], Place] = lambda example: Place("", example),
        bounds: NDArray[np.int64] | None = None,
    ) -> tuple[PackedDataset, dict[str, Any]]:
        """Fit, mix and pack the documents of a set; return it with facts about it.

        Args:
            documents: one for each example.
            where: name of the set, for messages.
            name: names an example, for messages.
            bounds: number of the first example of each source, where sources may have weights.
        """
        config = self.config
        fitted, count = fit(
            *(documents, self.max_length, config.overflow, config.on_empty, where),
            max_dropped=config.max_dropped,
            name=name,
            positions=self.positions,
            together=bool(config.together),
            untrained=config.untrained,
        )
        require_some(count, self.max_length, where)
        empty = documents.examples[documents.supervised == 0]
        self.warnings += losses(
            count,
            config.overflow,
            self.max_length,
            where,
            name(int(empty[0])) if len(empty) else None,
            bool(config.together),
        )
        facts: dict[str, Any] = attrs.asdict(count)
        if bounds is not None and config.source_weights is not None:
            fitted, mixture = mix(fitted, bounds.tolist(), config.source_weights, config.seed, bool(config.together))
            facts["mixture"] = attrs.asdict(mixture)
            for source, examples in zip(self.sources, mixture.rows, strict=False):
                source["epoch_rows"] = examples
            if mixture.left_out:
                self.warnings.append(
                    f"{where}: with these weights an epoch does not use {mixture.left_out:,} of {count.rows_kept:,}"
                    f" examples, and repeats {mixture.repeated:,}"
                )
        room = self.max_length * max(1, config.together)
        bins = pack(self.hooks, fitted, room, config) if config.pack_samples or config.together else None
        self.digests.append(fitted.digest())
        if bins is not None:
            self.digests.append(bins.digest())
        if bins is not None and config.pack_samples:
            tokens = int(fitted.lengths.sum())
            facts |= {"bins": len(bins), "filled": round(tokens / (len(bins) * room), 4)}
        made = PackedDataset(fitted, bins, name)
        facts["histograms"] = {"tokens of a row": histogram(fitted.lengths)}
        if config.pack_samples:
            facts["histograms"]["tokens of a pack"] = histogram(made.lengths)
        return made, facts

    def check(self, train: Documents, evaluation: Mapping[str, Documents]) -> None:
        """Warn about common mistakes in the data or the template."""
        eot_tokens = self.config.eot_tokens if isinstance(self.config, SFTDataConfig) else ()
        if not ends_trained(train, self.tokenizer, eot_tokens):
            self.warnings.append(
                "no end-of-turn or end-of-sequence token is trained, so that the model will not learn to stop; check"
                " the chat template and, if it has {% generation %}, that the block includes the end of the turn"
            )
        if twice := doubled_bos(train, self.tokenizer):
            self.warnings.append(
                f"data.sources: {twice:,} examples begin with two beginning-of-sequence tokens; remove the one in the"
                " examples' own text"
            )
        if again := duplicates(train):
            self.warnings.append(
                f"data.sources: {again:,} examples are the same as an earlier one; set data.exact_deduplication: true"
                " to remove them"
            )
        for name, documents in evaluation.items():
            if seen := shared(documents, train):
                self.warnings.append(
                    f"evaluation set '{name}': {seen:,} of {len(documents):,} examples are also trained on, which"
                    " lowers its loss; remove them from one of the two, or set data.exact_deduplication: true"
                )


def _name(labels: Sequence[str], bounds: Sequence[int], example: int) -> Place:
    source = bisect.bisect_right(bounds, example) - 1
    return Place(labels[source], example - bounds[source])


def _summary(facts: Mapping[str, Any], max_length: int) -> str:
    """Summarize the facts of a set in one line."""
    share = facts["tokens_trained"] / max(1, facts["tokens_kept"])
    packs = f", {facts['bins']:,} packs of {max_length:,} ({facts['filled']:.1%} full)" if "bins" in facts else ""
    tokens = f"{facts['tokens_kept']:,} tokens ({share:.0%} trained)"
    return f"{facts['rows_kept']:,} examples, {tokens}{packs}{_duplicates(facts)}"


def _duplicates(facts: Mapping[str, Any]) -> str:
    """Say how many duplicates were removed, where any were."""
    return f", {facts['rows_duplicate']:,} duplicates removed" if facts.get("rows_duplicate") else ""


def named(sources: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Yield each evaluation source with a unique name: its own, or the last part of its ``name_or_path``."""
    taken: set[str] = set()
    numbers: dict[str, int] = {}
    for source in sources:
        unique = name = SourceOptions.of(source).name or PurePosixPath(label_of(source)).stem or "eval"
        while unique in taken:
            numbers[name] = numbers.get(name, 1) + 1
            unique = f"{name}-{numbers[name]}"
        taken.add(unique)
        yield unique, source


def _split(documents: Documents, wanted: float | int, seed: int) -> tuple[Documents, Documents]:
    """Draw evaluation examples, a share or a number, by ``seed``; both sets keep their order and neither is empty."""
    _, examples = np.unique(documents.examples, return_inverse=True)
    count = int(examples.max(initial=-1)) + 1
    if isinstance(wanted, int) and wanted >= count > 1:
        raise DataError(
            f"data.val_size: given {wanted:,} of {count:,} examples, expected fewer; some are to be trained"
        )
    if count < 2:
        raise DataError(
            f"data.train_eval_split, data.val_size: given {count} example, expected at least 2; use eval_sources"
        )
    held = np.zeros(count, np.bool_)
    order = np.random.default_rng(seed).permutation(count)
    share = wanted if isinstance(wanted, int) else round(count * wanted)
    held[order[: min(max(share, 1), count - 1)]] = True
    return documents.select(np.flatnonzero(~held[examples])), documents.select(np.flatnonzero(held[examples]))


def length_limit(tokenizer: Any, config: TokenDataConfig, positions: int | None = None) -> int:
    """Return the size of the longest sequence: ``data.max_length``, or the tokenizer's own limit, or 8192.

    Args:
        tokenizer: the run's.
        config: the recipe's ``data``.
        positions: tokens for which the model has positions; None where it does not limit them.
    """
    limit = model_max_length(tokenizer)
    longest = config.max_length or (limit if 2 <= limit < 1_000_000 else 8192)
    return longest if positions is None else min(longest, positions)
