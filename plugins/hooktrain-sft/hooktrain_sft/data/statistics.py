"""Statistics of prepared documents: losses, missing ends, doubled tokens, duplicates, lengths."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hooktrain_sft.config import Overflow, WeightRule
from hooktrain_sft.data.documents import Documents, Place, TokenCount

__all__ = [
    "doubled_bos",
    "duplicates",
    "ends_trained",
    "histogram",
    "losses",
    "shared",
    "without_duplicates",
    "without_effect",
]

_ODD = np.uint64(0x9E3779B97F4A7C15)
"""Multiplier of digests by their place in an example; odd, so that none of their bits is lost."""


def ends_trained(documents: Documents, tokenizer: Any, eot_tokens: Sequence[str] = ()) -> bool:
    """Return whether any run of trained tokens ends with the end-of-sequence, another special token, or a given one.

    White space after it, as templates write between turns, does not count.
    """
    special = {tokenizer.convert_tokens_to_ids(token) for token in eot_tokens}
    special |= {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= {tokenizer.eos_token_id} - {None}
    ends = np.array(sorted(special), np.int64)
    is_space = functools.cache(lambda token: not str(tokenizer.decode([token])).strip())
    for ids, mask in documents:
        trained = mask.astype(np.bool_)
        last = np.flatnonzero(trained & ~np.append(trained[1:], False))
        while len(last):
            if np.isin(ids[last], ends).any():
                return True
            spaces = [is_space(token) for token in ids[last].tolist()]
            last = last[np.array(spaces, np.bool_) & (last > 0)] - 1
            last = last[trained[last]]
    return False


def doubled_bos(documents: Documents, tokenizer: Any) -> int:
    """Count the documents that begin with two beginning-of-sequence tokens."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return 0
    count = 0
    for number in np.unique(documents.pieces):
        some = (documents.pieces == number) & (documents.lengths > 1)
        ids, starts = documents.piece(number).input_ids, documents.starts[some]
        count += int(((ids[starts] == bos) & (ids[starts + 1] == bos)).sum())
    return count


def _per_example(documents: Documents) -> NDArray[np.uint64]:
    """Return one digest for each example, of all its sequences in their order."""
    _, first, example = np.unique(documents.examples, return_index=True, return_inverse=True)
    places = (np.arange(len(example)) - first[example]).astype(np.uint64)
    digests = np.zeros(len(first), np.uint64)
    np.add.at(digests, example, documents.digests * np.power(_ODD, places))
    return digests


def without_duplicates(documents: Documents, others: Documents | None = None) -> tuple[Documents, int]:
    """Remove the examples whose tokens are those of an earlier one, or of an example of ``others``.

    Returns:
        The other documents, in their order, and the number of the examples that were removed.
    """
    digests = _per_example(documents)
    _, first = np.unique(digests, return_index=True)
    kept = np.zeros(len(digests), np.bool_)
    kept[first] = True
    if others is not None:
        kept &= ~np.isin(digests, _per_example(others))
    _, example = np.unique(documents.examples, return_inverse=True)
    return documents.select(np.flatnonzero(kept[example])), int((~kept).sum())


def duplicates(documents: Documents) -> int:
    """Count the examples whose tokens are those of an earlier example."""
    digests = _per_example(documents)
    return len(digests) - len(np.unique(digests))


def shared(documents: Documents, others: Documents) -> int:
    """Count the examples of ``documents`` whose tokens are those of an example of ``others``."""
    return int(np.isin(_per_example(documents), _per_example(others)).sum())


def losses(
    count: TokenCount,
    overflow: Overflow,
    max_length: int,
    where: str,
    first_empty: Place | None = None,
    together: bool = False,
) -> list[str]:
    """Return warnings about examples that were dropped or cut, with what keeps them."""
    lost = count.tokens_dropped + count.tokens_truncated
    dropped = count.rows_in - count.rows_kept
    if not lost and not dropped:
        return []
    remedies = []
    if count.rows_too_long:
        others = "split" if overflow == "truncate" else "truncate or split"
        others = "" if together else f" or `data.overflow:` {others}"
        remedies.append(f"to keep what is too long, set `data.max_length: {count.longest}`{others}")
    if count.rows_empty:
        shown = first_empty or Place("", 2)
        first = f" (the first is {first_empty})" if first_empty else ""
        remedies.append(f"look at what is not trained with {shown.command}{first}")
    warnings = [
        f"{where}: {lost:,} of {count.tokens_in:,} tokens are not used ({dropped:,} of {count.rows_in:,} examples"
        f" dropped, {count.tokens_truncated:,} tokens truncated); {count.rows_too_long + count.rows_split:,} examples"
        f" were longer than max_length {max_length}{' and are split' if count.rows_split else ''},"
        f" {count.rows_empty:,} had no trained token" + "".join(f"; {remedy}" for remedy in remedies)
    ]
    if count.rows_cut:
        warnings.append(
            f"{where}: {count.rows_cut:,} examples have lost the end of what is trained, so that the model does not"
            " learn from them where to stop; raise `data.max_length`, or write `data.overflow: drop`"
        )
    return warnings


def without_effect(rules: Sequence[WeightRule], fitting: Collection[int]) -> list[str]:
    """Return warnings about rules of ``data.weights`` other than those that fit some trained text."""
    given = {
        number: ", ".join(f"{key} '{value}'" for key, value in (("role", rule.role), ("match", rule.match)) if value)
        for number, rule in enumerate(rules)
    }
    return [
        f"data.weights[{number}]: {what} fits no trained text of any example, so that the rule has no effect; correct"
        " or remove it"
        for number, what in given.items()
        if number not in fitting
    ]


def histogram(values: NDArray[np.int64], bins: int = 10) -> dict[str, list[int]]:
    """Count values in equal intervals with round bounds, from that of the smallest on; ``edges`` has one entry more."""
    most = int(values.max(initial=1))
    least = int(values.min(initial=most))
    raw = -(-(most - least + 1) // bins)
    scale = 10 ** (len(str(raw)) - 1)
    width = next(step * scale for step in (1, 2, 5, 10) if step * scale >= raw)
    start = least // width * width
    edges = start + width * np.arange((most - start) // width + 2)
    counts, _ = np.histogram(values, edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}
