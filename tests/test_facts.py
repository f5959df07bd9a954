from __future__ import annotations

import re

import pytest

from tests.facts import facts


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["optimizer.lr", "-1"], True),
        (["-1", "optimizer.lr"], True),
        (["at least 0", "line"], True),
        (["optimizer.lr", "-2"], False),
        (["optimizer_lr"], False),
        ([], True),
    ],
)
def test_all_facts_are_there_in_any_order(texts, found):
    assert (re.search(facts(*texts), "optimizer.lr: given -1,\nexpected at least 0 (a line)") is not None) == found
