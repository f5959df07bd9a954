"""The packages' own tests, the conformance kit among them, pass where the packages are installed."""

from __future__ import annotations

import pytest

from tests.environments import PYTEST
from tests.third_party.runs import GOOD


def test_those_of_one_package(built, good):
    """A resume and the average; first-party plugins run the rest of the kit."""
    folder = built / "sources" / "hooktrain-ema"
    run = good.run(folder, *PYTEST, "-k", "state or average or sharded", "tests")
    assert run.status == 0, run.output


@pytest.mark.thorough
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name in GOOD if name != "beacon-host"])
def test_all(built, installed, name):
    run = installed.run(built / "sources" / f"hooktrain-{name}", *PYTEST, "tests")
    assert run.status == 0, run.output
