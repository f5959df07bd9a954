"""Every token is kept, dropped or truncated, and counted as what it is."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hooktrain_sft.data.documents import Documents, Place, fit, require_some
from hooktrain_sft.data.statistics import histogram, losses
from hypothesis import given
from hypothesis import strategies as st

from hooktrain import DataError
from tests.facts import facts


def documents(*masks: str) -> Documents:
    """A document for each string of ``x`` (trained) and ``.``; token ids count up over all of them."""
    pairs, start = [], 0
    for mask in masks:
        pairs.append(
            (np.arange(start, start + len(mask), dtype=np.int32), np.array([c == "x" for c in mask], np.bool_))
        )
        start += len(mask)
    return Documents.of(pairs)


def shown(made: Documents) -> list[tuple[list[int], str]]:
    """Ids and mask of each document."""
    return [(ids.tolist(), "".join(".x"[int(t)] for t in trained)) for ids, trained in made]


def test_the_first_token_is_not_trained() -> None:
    assert shown(documents("xxx", "x", ".x")) == [([0, 1, 2], ".xx"), ([3], "."), ([4, 5], ".x")]


def test_join_and_select() -> None:
    made = Documents.join([documents("..x", ".x"), documents(".xx")])
    assert made.examples.tolist() == [0, 1, 2] and made.lengths.tolist() == [3, 2, 3]
    assert shown(made.select(np.array([2, 0]))) == [([0, 1, 2], ".xx"), ([0, 1, 2], "..x")]


def test_overflow_error_counts_and_suggests_what_to_write() -> None:
    with pytest.raises(DataError, match=facts("set", "2 of 3", "max_length 3", "data.max_length: 5", "data.overflow")):
        fit(documents(".xxxx", ".x", "...x"), 3, "error", "error", "set")


def test_overflow_drop() -> None:
    made, count = fit(documents(".xxxx", ".x"), 3, "drop", "error", "set")
    assert shown(made) == [([5, 6], ".x")]
    assert (count.rows_kept, count.tokens_kept, count.tokens_dropped) == (1, 2, 5)


def test_overflow_truncate() -> None:
    made, count = fit(documents(".xxxx", ".x"), 3, "truncate", "error", "set")
    assert shown(made) == [([0, 1, 2], ".xx"), ([5, 6], ".x")]
    assert (count.rows_too_long, count.tokens_truncated, count.tokens_dropped) == (1, 2, 0)


def test_what_is_split_is_neither_too_long_nor_cut() -> None:
    _, count = fit(documents("xxxxxx", ".x"), 3, "split", "error", "set")
    assert (count.rows_too_long, count.rows_split, count.rows_cut) == (0, 1, 0)
    assert losses(count, "split", 3, "set") == []
    _, count = fit(documents("....xxx", ".x"), 3, "split", "error", "set")
    (warning,) = losses(count, "split", 3, "set")
    assert "1 examples were longer than max_length 3 and are split" in warning and "overflow" not in warning
    _, count = fit(documents(".xxxx", ".x"), 3, "truncate", "error", "set")
    assert (count.rows_too_long, count.rows_split, count.rows_cut) == (1, 0, 1)
    assert "1 examples have lost the end of what is trained" in losses(count, "truncate", 3, "set")[1]


def test_overflow_split_drops_pieces_without_trained_tokens() -> None:
    made, count = fit(documents("....xxx", ".x"), 3, "split", "error", "set")
    # the last piece has one token, which nothing in it could predict
    assert shown(made) == [([3, 4, 5], ".xx"), ([7, 8], ".x")]
    assert (count.rows_kept, count.rows_empty, count.tokens_kept, count.tokens_dropped) == (2, 0, 5, 4)


def test_the_first_token_of_a_piece_is_not_trained() -> None:
    made, count = fit(documents("xxxxxx"), 3, "split", "error", "set")
    assert shown(made) == [([0, 1, 2], ".xx"), ([3, 4, 5], ".xx")]
    assert count.tokens_trained == made.supervised.sum() == 4


def test_an_example_without_trained_tokens() -> None:
    examples = documents("..x", "...", "...x")
    with pytest.raises(DataError, match=facts("set", "2 of 3", " 1 (1 ", "max_length 3", "data.on_empty: drop")):
        fit(examples, 3, "truncate", "error", "set")
    made, count = fit(examples, 3, "truncate", "drop", "set")
    assert shown(made) == [([0, 1, 2], "..x")]
    assert (count.rows_empty, count.tokens_dropped, count.tokens_truncated) == (2, 6, 1)


def test_nothing_left() -> None:
    made, count = fit(documents(".xxx", ".."), 3, "drop", "drop", "set")
    assert len(made) == 0 and count.tokens_dropped == count.tokens_in
    with pytest.raises(DataError, match=facts("set", "none of the 2", "max_length 3", "data.max_length")):
        require_some(count, 3, "set")


@pytest.mark.parametrize(("long", "empty", "stops"), [(1, 0, False), (0, 1, False), (2, 0, True), (1, 1, True)])
def test_auto_drops_a_share_and_stops_above_it(long: int, empty: int, stops: bool) -> None:
    examples = documents(*[".xxx"] * long, *[".."] * empty, *[".x"] * (10 - long - empty))
    if not stops:
        made, count = fit(examples, 3, "auto", "auto", "set")
        assert len(made) == count.rows_kept == 9 and count.rows_too_long + count.rows_empty == 1
    else:
        said = [f"{long} of 10", "max_length 3", "data.max_length: 4", "data.overflow"]
        said += ["1 of 10", "data.on_empty: drop"] if empty else []
        with pytest.raises(DataError, match=facts("set", *said, "0.1", "data.max_dropped")):
            fit(examples, 3, "auto", "auto", "set")
    made, count = fit(examples, 3, "drop", "drop", "set")
    assert count.rows_kept == len(made) == 10 - long - empty, "a written drop has no bound"
    made, count = fit(examples, 3, "auto", "auto", "set", max_dropped=0.2)
    assert count.rows_kept == 10 - long - empty


def test_only_what_auto_drops_is_judged() -> None:
    examples = documents(*[".xxx"] * 4, *[".x"] * 5, "..")
    assert fit(examples, 3, "drop", "auto", "set")[1].rows_kept == 5
    assert fit(examples, 3, "truncate", "auto", "set")[1].rows_kept == 9
    with pytest.raises(DataError, match=facts("set", "4 of 10", "data.overflow")):
        fit(examples, 3, "auto", "drop", "set")
    with pytest.raises(
        DataError,
        match=facts("set", "1 of 10", "the first is rows.jsonl, example 9", "--show 10", "data.on_empty: drop"),
    ):
        fit(examples, 3, "drop", "error", "set", name=lambda example: Place("rows.jsonl", example))


def test_earlier_documents_of_the_set_count_in_the_share() -> None:
    block, clean = documents(".xxx", *[".x"] * 4), documents(*[".x"] * 5)
    with pytest.raises(DataError, match=facts("1 of 5")):
        fit(block, 3, "auto", "auto", "set")
    before = fit(clean, 3, "auto", "auto", "set")[1]
    seen = before + fit(block, 3, "auto", "auto", "set", before=before)[1]
    assert (seen.rows_in, seen.rows_too_long) == (10, 1)
    with pytest.raises(DataError, match=facts("2 of 15", "longest: 4")):
        fit(block, 3, "auto", "auto", "set", before=seen)
    assert fit(block, 3, "auto", "auto", "set", before=seen, at_least=20)[1].rows_kept == 4


@given(
    masks=st.lists(st.text("x.", min_size=0, max_size=12), min_size=1, max_size=8),
    max_length=st.integers(2, 8),
    overflow=st.sampled_from(["drop", "truncate", "split"]),
)
def test_tokens_add_up(masks: list[str], max_length: int, overflow: str) -> None:
    given_documents = documents(*masks)
    made, count = fit(given_documents, max_length, overflow, "drop", "set")  # type: ignore[arg-type]
    assert count.tokens_in == sum(map(len, masks)) == count.tokens_kept + count.tokens_dropped + count.tokens_truncated
    assert count.tokens_kept == made.lengths.sum() and count.tokens_trained == made.supervised.sum()
    assert made.lengths.max(initial=0) <= max_length and (made.supervised > 0).all()
    kept = [token for ids, _ in shown(made) for token in ids]
    assert len(set(kept)) == len(kept), "no token twice"
    offsets = np.cumsum([0, *map(len, masks)])
    for (ids, mask), example, supervised in zip(shown(made), made.examples, made.supervised, strict=True):
        start, end = offsets[example], offsets[example + 1]
        assert mask.count("x") == supervised
        assert start <= ids[0] and ids[-1] < end and ids == list(range(ids[0], ids[-1] + 1))
        assert mask == "." + masks[example][ids[0] - start + 1 : ids[-1] - start + 1]


def test_digest_tells_documents_apart() -> None:
    one = documents("..x", ".x").digest()
    assert one == documents("..x", ".x").digest()
    assert (
        len({one, documents("..x", "..").digest(), documents("..x.x").digest(), documents("..x", ".xx").digest()}) == 4
    )


def test_documents_travel_to_worker_processes() -> None:
    made = documents("..x", ".xx").cut(np.array([1, 0]), np.array([1, 0]), np.array([2, 2]))
    again = pickle.loads(pickle.dumps(made))
    assert shown(again) == shown(made) == [([4, 5], ".x"), ([0, 1], "..")]
    assert again.supervised.tolist() == made.supervised.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("values", "edges"),
    [([700, 710, 790], list(range(700, 801, 10))), ([5], [5, 6]), ([], [1, 2]), ([0, 19], list(range(0, 21, 2)))],
)
def test_a_histogram_begins_with_its_smallest_value(values, edges):
    found = histogram(np.array(values, np.int64))
    assert found["edges"] == edges and sum(found["counts"]) == len(values)
