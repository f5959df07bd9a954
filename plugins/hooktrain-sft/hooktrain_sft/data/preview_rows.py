"""Previews of examples for ``hooktrain data --show``, with the rule behind each trained span."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from hooktrain import ExamplePreview, World
from hooktrain_sft.chat.rendered import Rendered, fitting_rules
from hooktrain_sft.config import TokenDataConfig
from hooktrain_sft.data.prepare import named
from hooktrain_sft.data.source_reader import Reader

__all__ = ["preview_examples"]


def preview_examples(
    config: TokenDataConfig, tokenizer: Any, world: World, hooks: Any, count: int
) -> list[ExamplePreview]:
    """Return previews of the first examples of each source, before anything is cut or packed."""
    reader = Reader(config, tokenizer, world, hooks)
    shown = []
    for source in (*config.sources, *(source for _, source in named(config.eval_sources))):
        opened = reader.open(source)
        rendered = list(reader.render(opened, itertools.islice(iter(opened), count)))
        sequences = [
            (f"{index}, sequence {number}" if example.sequences else str(index), one, example.notes)
            for index, example in enumerate(rendered)
            for number, one in enumerate(example.sequences or (example,))
        ]
        for (where, example, notes), (ids, trained) in zip(sequences, reader.encoder(rendered), strict=True):
            pieces = tuple(_pieces(example, ids.tolist(), trained.copy(), tokenizer))
            note = f"{len(ids):,} tokens, {np.count_nonzero(trained[1:]):,} of them trained"
            if trained.dtype == np.float32:
                note += f", whose weights add up to {trained[1:].sum(dtype=np.float64):g}"
            if opened.format is not None:
                note += f"; {opened.format.why}"
            note = "; ".join(
                [note, *(one for one in notes if not (one.startswith("column: ") or fitting_rules([one])))]
            )
            shown.append(ExamplePreview(f"{opened.label}, example {where}", pieces, note))
    return shown


def _pieces(example: Rendered, ids: Sequence[int], trained: Any, tokenizer: Any) -> Iterator[tuple[str, bool, str]]:
    """Yield runs of trained or other tokens as text; each trained run with the rule of its span."""
    trained[:1] = False
    edges = np.flatnonzero(np.diff(np.concatenate([[0], trained.astype(np.bool_).astype(np.int8), [0]])))
    rules = example.rules
    at = 0
    # a span without a complete token has no run; then runs cannot be matched to rules one by one
    matched = rules if len(rules) == len(edges) // 2 else [", ".join(dict.fromkeys(rules))] * (len(edges) // 2)
    for begin, end, rule in zip(edges[::2].tolist(), edges[1::2].tolist(), matched, strict=True):
        if begin > at:
            yield tokenizer.decode(ids[at:begin]), False, ""
        changes = np.flatnonzero(np.diff(trained[begin:end].astype(np.float32))) + begin + 1
        for first, last in itertools.pairwise([begin, *changes.tolist(), end]):
            weight = float(trained[first])
            yield tokenizer.decode(ids[first:last]), True, rule if weight == 1 else f"{rule}, weight {weight:g}"
        at = end
    if at < len(ids):
        yield tokenizer.decode(ids[at:]), False, ""
