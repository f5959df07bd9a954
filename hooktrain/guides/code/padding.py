"""A suite for ``hooktrain bench``: two ways to pad sequences to a batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from hooktrain import hookimpl
from hooktrain.bench import Case, Context, Findings, Suite, Target
from torch.nn.utils.rnn import pad_sequence

SEQUENCES = [torch.ones(16 + 37 * n % 496) for n in range(512)]


def with_torch(count: int) -> Findings:
    batch = pad_sequence(SEQUENCES[:count], batch_first=True)
    return {"tokens": int(batch.sum())}


def by_hand(count: int) -> Findings:
    sequences = SEQUENCES[:count]
    batch = torch.zeros(count, max(map(len, sequences)))
    for row, sequence in zip(batch, sequences, strict=True):
        row[: len(sequence)] = sequence
    return {"tokens": int(batch.sum())}


def same_tokens(ours: Findings, theirs: Findings, warmup: int) -> str:
    counts = ours["tokens"], theirs["tokens"]
    return "" if counts[0] == counts[1] else f"tokens: {counts}"


def cases(context: Context) -> Iterator[Case]:
    checks = (("by hand", "pad_sequence", same_tokens),)
    target = Target(variant="by hand", at_most=1.1, checks=checks)
    for count in (8,) if context.quick else (8, 64, 512):
        yield Case(
            name=f"{count} sequences",
            parameters={"count": count},
            variants={"by hand": by_hand, "pad_sequence": with_torch},
            targets=[target],
            calls=None,
        )


@hookimpl
def register_benchmarks() -> list[Suite]:
    about = "padding by hand, compared with pad_sequence"
    return [Suite(name="padding", summary=about, cases=cases, over="count")]
