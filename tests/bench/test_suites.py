"""Suites that plugins contribute, and the selection of their cases."""

from __future__ import annotations

import pytest

from hooktrain.bench import BenchError, Settings, Skip, Suite, run_suites
from hooktrain.bench.runner import gather, select
from hooktrain.errors import PluginError
from hooktrain.testing import host_of
from tests.bench.napping import Napping
from tests.facts import facts


def test_plugins_contribute_suites():
    known = gather(host_of(Napping()))
    suite, plugin = known["napping"]
    assert plugin == "Napping"
    assert select(["napping:ten"], known) == [(suite, frozenset({"ten"}))]
    assert select(["napping:ten", "napping"], known) == [(suite, None)]
    with pytest.raises(BenchError, match=facts("'naping'", "'napping'")):
        select(["naping"], known)
    with pytest.raises(BenchError, match=facts("'tan'", "'ten'", "napping")):
        run_suites([(suite, frozenset({"tan"}))])
    with pytest.raises(BenchError, match=facts("'two'", "--quick", " ten")):
        run_suites([(suite, frozenset({"two", "ten"}))], Settings(quick=True))


def test_two_plugins_with_one_suite_are_named():
    with pytest.raises(PluginError, match=facts("'Napping-2'", "'Napping'", "'napping'", "-p no:Napping")):
        gather(host_of(Napping(), Napping()))


def test_a_suite_that_cannot_be_measured_here_is_skipped_with_the_reason():
    def cases(context):
        raise Skip("there is no GPU here")
        yield

    said: list[str] = []
    (line,) = run_suites([Suite(name="gpu", summary="", cases=cases)], say=said.append)
    assert line == {"suite": "gpu", "skipped": "there is no GPU here"}
    (shown,) = said
    assert shown.startswith("gpu: ") and shown.endswith("there is no GPU here")


def test_an_option_that_is_no_number(tmp_path):
    def cases(context):
        context.whole_number("naps", 2)
        yield

    suite = Suite(name="s", summary="", cases=cases, options={"naps": "how many"})
    with pytest.raises(BenchError, match=facts("--set naps:", "'many'", "whole number", " 2")):
        run_suites([suite], Settings(options={"naps": "many"}))
    with pytest.raises(BenchError, match=facts("--set nap:", "'naps'", " naps")):
        run_suites([suite], Settings(options={"nap": "3"}))
