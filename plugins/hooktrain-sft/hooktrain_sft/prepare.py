"""From sources to data sets: load, render, tokenize, divide, fit, pack, and account for every token."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from hooktrain import Data, DataError, World
from hooktrain_sft.collate import collate_flat, collate_stacked
from hooktrain_sft.config import TokenDataConfig
from hooktrain_sft.dataset import PackedDataset
from hooktrain_sft.documents import Documents, TokenCount, fit
from hooktrain_sft.encode import Encoder
from hooktrain_sft.packing import Bins, check_bins

__all__ = ["prepare_data"]

_BATCH = 1024
"""Rows that are tokenized together: enough to keep the tokenizer's threads busy."""


def prepare_data(config: TokenDataConfig, tokenizer: Any, world: World, hooks: Any) -> Data:
    """Build the data sets that a recipe asks for.

    Raises:
        DataError: when a row cannot be used and the recipe does not say to leave it out.
    """
    encoder = Encoder(tokenizer)

    def read(sources: Sequence[Any]) -> Documents:
        return Documents.join([_read_source(source, config, tokenizer, encoder, world, hooks) for source in sources])

    train = read(config.sources)
    evaluation = {name: read([source]) for name, source in _named(config.eval_sources)}
    if config.train_eval_split[1] > 0:
        train, evaluation["eval"] = _divide(train, config.train_eval_split[1], config.seed)

    max_length = config.max_length or _limit(tokenizer)
    report: dict[str, Any] = {"max_length": max_length, "evaluation": {}, "warnings": []}
    digests = []

    def finish(documents: Documents, where: str) -> tuple[PackedDataset, dict[str, Any]]:
        fitted, count = fit(documents, max_length, config.overflow, config.on_empty, where)
        bins = _pack(fitted, max_length, config, hooks) if config.pack_samples else None
        report["warnings"] += _losses(count, max_length, where)
        digests.append(fitted.digest())
        facts = attrs.asdict(count)
        if bins is not None:
            digests.append(bins.digest())
            facts |= {"bins": len(bins), "filled": round(count.tokens_kept / (len(bins) * max_length), 4)}
        return PackedDataset(fitted, bins), facts

    train_set, report["train"] = finish(train, "data.sources")
    evaluation_sets = {}
    for name, documents in evaluation.items():
        evaluation_sets[name], report["evaluation"][name] = finish(documents, f"evaluation set '{name}'")
    if not ends_trained(train_set.documents, tokenizer):
        report["warnings"].append(
            "no end-of-turn or end-of-sequence token is trained, so that the model will not learn to stop; check the"
            " chat template and, if it has {% generation %}, that the block includes the end of the turn"
        )
    report["summary"] = "; ".join(
        [_summary(report["train"], max_length)]
        + [f"{name}: {facts['rows_kept']:,} rows" for name, facts in report["evaluation"].items()]
    )
    return Data(
        train=train_set,
        evaluation=evaluation_sets,
        collate=collate_stacked if config.pack_samples else collate_flat,
        shuffle=config.shuffle,
        workers=config.workers,
        report=report,
        fingerprint="-".join(digests),
    )


def _summary(facts: Mapping[str, Any], max_length: int) -> str:
    """The figures of a set in one line."""
    share = facts["tokens_trained"] / max(1, facts["tokens_kept"])
    packs = f", {facts['bins']:,} packs of {max_length:,} ({facts['filled']:.1%} full)" if "bins" in facts else ""
    return f"{facts['rows_kept']:,} rows, {facts['tokens_kept']:,} tokens ({share:.0%} trained){packs}"


def _read_source(
    source: Any, config: TokenDataConfig, tokenizer: Any, encoder: Encoder, world: World, hooks: Any
) -> Documents:
    """All rows of a source as documents, one each."""
    label = _label(source)
    rows = hooks.load_source(config=source, world=world)
    if rows is None:
        raise DataError(f"{label}: no plugin loads a {type(source).__name__}; install or enable one that does")

    def rendered() -> Iterator[Any]:
        for index, row in enumerate(_each(rows)):
            try:
                made = hooks.render_row(row=row, tokenizer=tokenizer, config=config)
            except DataError as problem:
                raise DataError(f"{label}, row {index}: {problem}") from problem
            if made is None:
                raise DataError(f"{label}, row {index}: no plugin renders rows for {type(config).__name__}; enable one")
            yield made

    encoded = [pair for batch in _batches(rendered()) for pair in encoder(batch)]
    if not encoded:
        raise DataError(f"{label}: given no rows, expected at least one; check the name and the split of the source")
    return Documents.of(encoded)


def _each(rows: Any) -> Iterable[Any]:
    """Rows in order; iterating reads tables by the block where indexing reads them row by row."""
    return rows if hasattr(rows, "__iter__") else (rows[index] for index in range(len(rows)))


def _batches(items: Iterator[Any]) -> Iterator[list[Any]]:
    while batch := list(itertools.islice(items, _BATCH)):
        yield batch


def _label(source: Any) -> str:
    return str(getattr(source, "name", None) or getattr(source, "name_or_path", None) or type(source).__name__)


def _named(sources: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Each evaluation source with a name that no other has: its own, or the last part of what it loads."""
    taken: set[str] = set()
    for source in sources:
        name = getattr(source, "name", None) or PurePosixPath(_label(source)).stem or "eval"
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


def _limit(tokenizer: Any) -> int:
    """Tokens that the tokenizer says its model takes; transformers writes a huge number where it does not know."""
    limit = getattr(tokenizer, "model_max_length", None) or 0
    return int(limit) if 2 <= limit < 1_000_000 else 8192


def _pack(documents: Documents, max_length: int, config: TokenDataConfig, hooks: Any) -> Bins:
    lengths = documents.lengths
    bins = hooks.pack_rows(lengths=lengths, max_length=max_length, config=config)
    if bins is None:
        raise DataError("data.pack_samples: no plugin packs rows; enable hooktrain-sft or another that has pack_rows")
    packed = Bins.of(bins)
    check_bins(packed, lengths, max_length)
    return packed


def _losses(count: TokenCount, max_length: int, where: str) -> list[str]:
    """A warning when rows were dropped or cut."""
    lost = count.tokens_dropped + count.tokens_truncated
    if not lost:
        return []
    return [
        f"{where}: {lost} of {count.tokens_in} tokens are not trained with ({count.rows_in - count.rows_kept} of"
        f" {count.rows_in} rows dropped, {count.tokens_truncated} tokens truncated); {count.rows_too_long} rows were"
        f" longer than max_length {max_length}, in {count.rows_empty} nothing was trained"
    ]


def ends_trained(documents: Documents, tokenizer: Any) -> bool:
    """Whether, anywhere, a run of trained tokens ends with one that ends a turn: end-of-sequence or another special."""
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= {tokenizer.eos_token_id} - {None}
    following = np.concatenate([documents.trained[1:], [False]])
    following[documents.offsets[1:-1] - 1] = False  # the next document's tokens do not go on with this one's
    last: NDArray[np.int32] = documents.input_ids[documents.trained & ~following]
    return bool(np.isin(last, list(special)).any())
