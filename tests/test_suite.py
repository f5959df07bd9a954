"""The suite keeps its rules: helpers are in modules of their own, and no clock, sleep or port decides anything."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

import pytest

from tests.suite_rules import RULES, violations

TESTS = Path(__file__).parent
INSTALLED = TESTS / "packages"
"""Packages of strangers, whose tests run where they are installed."""
EXCEPTIONS = {
    "training/test_soak.py: sleep: SAYS.on_microbatch_start": "so that a run is long enough to be killed",
    "training/test_soak.py: sleep: Soak.kill_one": "at any time is what the thorough tier tests; the default one counts micro-batches",
    "plugins/torch/test_strategy.py: port: test_ranks_without_an_address_to_meet_at": "a port without an address is what"
    " is refused; nothing binds it",
}
"""Places that break a rule, each with its reason."""


def found() -> dict[str, str]:
    """Each place of the suite that breaks a rule, as it is written in ``EXCEPTIONS``, with a line to go to."""
    files = [path for path in sorted(TESTS.rglob("*.py")) if not path.is_relative_to(INSTALLED)]
    files.remove(Path(__file__))  # whose examples break every rule
    return {
        f"{path.relative_to(TESTS)}: {each.rule}: {each.where}": f"{path}:{each.line}: {each.where} {RULES[each.rule]}"
        for path in files
        for each in violations(path.read_text(encoding="utf-8"))
    }


def test_the_suite_keeps_its_rules() -> None:
    places = found()
    assert not [text for place, text in places.items() if place not in EXCEPTIONS]
    assert not EXCEPTIONS.keys() - places.keys(), "remove from EXCEPTIONS what breaks no rule any more"


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        ("import", "from tests.test_recipe import Parts"),
        ("import", "from tests import test_recipe"),
        ("import", "import tests.plugins.sft.test_cache"),
        ("import", "PROGRAM = 'from tests.test_recipe import Parts'"),
        ("sleep", "def test_x():\n    time.sleep(0.01)"),
        ("sleep", "def test_x():\n    while not done():\n        time.sleep(0.2)"),
        ("sleep", "def test_x():\n    sleep(seconds)"),
        ("sleep", "def test_x():\n    time.sleep(60)"),
        ("sleep", "NAP = 'import time; time.sleep(2)'"),
        ("clock", "def test_x():\n    began = time.monotonic()\n    assert time.monotonic() - began < 5"),
        ("clock", "def test_x():\n    took = perf_counter() - began\n    both = took + 1\n    assert both < 5"),
        ("clock", "def test_x():\n    assert run.seconds < 5"),
        ("port", "def test_x(there):\n    there.bind(('127.0.0.1', 29500))"),
        ("port", "def test_x(monkeypatch):\n    monkeypatch.setenv('MASTER_PORT', '29500')"),
        ("port", "ENVIRONMENT = {'MASTER_PORT': '29500'}"),
        ("port", "WORDS = ['--master-port=29500']"),
        ("port", "def test_x():\n    serve(port=8080)"),
    ],
)
def test_a_file_that_breaks_a_rule_is_told(rule: str, source: str) -> None:
    assert [each.rule for each in violations(source)] == [rule]


def test_what_keeps_the_rules() -> None:
    source = """
    from tests.conversations import ROWS
    from hooktrain.testing import test_id

    FOREVER = "import time\\ntime.sleep(60)"

    def test_x(there, clock):
        until = time.monotonic() + 60
        while not there.exists():
            assert time.monotonic() < until, "a bound on the waiting"
            time.sleep(0.05)
        there.bind(("127.0.0.1", 0))
        assert clock.now == 5 and clock.calls <= 4.2 * 3
        serve(port=0)

    @pytest.mark.thorough
    def test_soak():
        began = time.monotonic()
        time.sleep(5)
        assert time.monotonic() - began < 10
    """
    assert ast.parse(textwrap.dedent(source))
    assert violations(textwrap.dedent(source)) == []
