"""The shards of the thorough tier: fixed, complete, and of about the same length."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.tiers import UNKNOWN, divide

TESTS = st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 99)), unique=True).map(
    lambda found: [f"tests/test_{file}.py::test_{number}" for file, number in found]
)


@given(TESTS, st.integers(1, 10), st.randoms())
def test_every_test_is_in_one_shard_whatever_the_order(tests, parts, random):
    shards = divide(tests, {}, parts)
    assert sorted(test for shard in shards for test in shard) == sorted(tests)
    shuffled = list(tests)
    random.shuffle(shuffled)
    assert divide(shuffled, {}, parts) == shards


@given(TESTS, st.integers(1, 10), st.dictionaries(st.integers(0, 99), st.floats(0, 100)))
def test_shards_are_of_about_the_same_length(tests, parts, spent):
    seconds = {test: spent.get(int(test.rpartition("_")[2]), UNKNOWN) for test in tests}
    lengths = [sum(seconds[test] for test in shard) for shard in divide(tests, seconds, parts)]
    longest = max([*seconds.values(), sum(seconds.values()) / parts / 2])
    assert max(lengths) - min(lengths) <= longest + 1e-6


def test_tests_of_a_short_file_stay_together():
    tests = [f"tests/test_{file}.py::test_{number}" for file in "abcdefgh" for number in range(3)]
    assert all(len(shard) % 3 == 0 for shard in divide(tests, {}, 2))


def test_a_test_that_is_added_is_counted_with_ten_seconds():
    tests = ["tests/test_a.py::test_a", "tests/test_b.py::test_b", "tests/test_c.py::test_c"]
    shards = divide(tests, {tests[0]: 25.0}, 2)
    assert shards == [[tests[0]], [tests[1], tests[2]]]
