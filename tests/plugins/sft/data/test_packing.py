"""Packing loses nothing, overfills nothing and always comes out alike."""

from __future__ import annotations

from itertools import chain, product

import numpy as np
import pytest
from hooktrain_sft.data.packing import Bins, best_fit_decreasing, best_sum, check_bins, fill_one_by_one, pack
from hypothesis import given
from hypothesis import strategies as st

from hooktrain import DataError
from tests.facts import facts


def plain_best_fit_decreasing(lengths: list[int], max_length: int) -> int:
    """The textbook algorithm, one document after the other; how many bins it needs."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms[rooms.index(min(fitting))] -= length
        else:
            rooms.append(max_length - length)
    return len(rooms)


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[int], int]:
    max_length = draw(st.integers(1, 40))
    return draw(st.lists(st.integers(1, max_length), max_size=80)), max_length


@given(problems())
def test_every_document_once_and_no_bin_over(problem: tuple[list[int], int]) -> None:
    lengths, max_length = problem
    bins = best_fit_decreasing(lengths, max_length)
    members = [bins[index].tolist() for index in range(len(bins))]
    assert sorted(chain(*members)) == list(range(len(lengths)))
    assert all(0 < sum(lengths[document] for document in part) <= max_length for part in members)
    assert members == sorted(members), "bins come in the order of their first documents, documents in order too"
    check_bins(bins, np.array(lengths, np.int64), max_length)


@given(problems())
def test_as_good_as_one_document_after_the_other(problem: tuple[list[int], int]) -> None:
    lengths, max_length = problem
    assert len(best_fit_decreasing(lengths, max_length)) == plain_best_fit_decreasing(lengths, max_length)


@given(problems())
def test_deterministic(problem: tuple[list[int], int]) -> None:
    assert best_fit_decreasing(*problem).digest() == best_fit_decreasing(*problem).digest()


def test_fills_bins_of_a_realistic_set() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(6, 1, 20_000).astype(np.int64), 1, 4096)
    bins = best_fit_decreasing(lengths, 4096)
    assert len(bins) <= 1.002 * lengths.sum() / 4096 + 1


@pytest.mark.parametrize("lengths", [[0, 3], [3, 11]])
def test_lengths_that_do_not_fit(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match=facts(f"{min(lengths)} to {max(lengths)}", "1 to 10")):
        best_fit_decreasing(lengths, 10)


@pytest.mark.parametrize(
    ("bins", "message"),
    [
        ([[0, 1]], facts("pack_sequences", "document 2", "0 bins")),
        ([[0, 1], [1, 2]], facts("pack_sequences", "document 1", "2 bins")),
        ([[0, 1], [2, 3]], facts("pack_sequences", "document 3", " 3;")),
        ([[0], [1, 2]], facts("pack_sequences", "bin 1 ", "11 tokens", "10")),
    ],
)
def test_a_packing_from_elsewhere_is_checked(bins: list[list[int]], message: str) -> None:
    lengths = np.array([4, 5, 6])
    check_bins(Bins.of([[0, 1], [2]]), lengths, 10)
    with pytest.raises(DataError, match=message):
        check_bins(Bins.of(bins), lengths, 10)


@given(problems())
def test_the_closer_fit_is_complete_and_never_takes_more_bins(problem: tuple[list[int], int]) -> None:
    lengths, max_length = problem
    sizes = np.array(lengths, np.int64)
    for bins in (pack(sizes, max_length), *(fill_one_by_one(sizes, max_length, short) for short in (False, True))):
        check_bins(bins, sizes, max_length)
        assert -(-sum(lengths) // max_length) <= len(bins)
    assert len(pack(sizes, max_length)) <= len(best_fit_decreasing(sizes, max_length))


def test_the_closer_fit_finds_what_best_fit_misses() -> None:
    lengths, max_length = [7, 6, 4, 3, 2, 2], 12  # 7 + 3 + 2 and 6 + 4 + 2, where the best fit for 4 is with 7
    assert len(best_fit_decreasing(lengths, max_length)) == 3
    assert len(pack(lengths, max_length)) == 2


@given(
    counts=st.dictionaries(st.integers(1, 12), st.integers(1, 4), max_size=5),
    room=st.integers(0, 30),
    short=st.booleans(),
)
def test_no_choice_of_documents_fills_more(counts: dict[int, int], room: int, short: bool) -> None:
    chosen = best_sum(counts, room, short)
    assert all(times <= counts[length] for length, times in chosen.items())
    choices = product(*(range(count + 1) for count in counts.values()))
    sums = (sum(length * times for length, times in zip(counts, choice, strict=True)) for choice in choices)
    assert sum(length * times for length, times in chosen.items()) == max(total for total in sums if total <= room)
