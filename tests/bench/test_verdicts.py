"""Verdicts are given only where the measurements support one."""

from __future__ import annotations

import re

import pytest

from hooktrain.bench import Case, Metric, Target, Variant
from hooktrain.bench.bootstrap import Interval
from hooktrain.bench.verdicts import compare_variants, verdict_on_change
from tests.bench.napping import runs
from tests.facts import facts


def one(limit: float, ours: list[dict], theirs: list[dict], **more) -> object:
    case = Case(
        name="c", variants={"ours": len, "theirs": len}, targets=[Target(variant="ours", at_most=limit, **more)]
    )
    (line,) = compare_variants(case, {"ours": ours, "theirs": theirs})
    return line


def test_a_verdict_needs_the_whole_interval_on_one_side():
    theirs = runs(1.0, 1.0, 1.0, 1.0)
    assert one(1.1, runs(1.05, 1.06, 1.05, 1.07), theirs).verdict == "passed"
    assert one(1.1, runs(1.25, 1.26, 1.25, 1.27), theirs).verdict == "failed"
    line = one(1.1, runs(1.0, 1.2, 1.0, 1.2, 1.0), theirs)
    assert line.verdict == "undecided"
    assert re.search(facts("1 to 1.2", "1.1", "rounds"), line.why)


def test_few_runs_get_no_verdict_unless_they_repeat_exactly():
    line = one(1.1, runs(1.0, 1.0), runs(1.0, 1.0))
    assert line.verdict == "undecided" and "2 runs" in line.why
    bytes_ = Metric("bytes", "MiB", exact=True)
    case = Case(name="c", variants={"a": len, "b": len}, metrics=[bytes_], targets=[Target(variant="a", at_most=1.0)])
    (line,) = compare_variants(case, {"a": [{"bytes": 5}], "b": [{"bytes": 5}]})
    assert line.verdict == "passed"


def test_a_difference_for_each_plugin():
    metric = Metric("seconds", "µs", scale=1e6)
    target = Target(variant="ours", kind="difference", per=10, at_most=1.0, unit="µs per plugin")
    case = Case(name="c", variants={"ours": len, "theirs": len}, metrics=[metric], targets=[target], compare=False)
    (line,) = compare_variants(case, {"ours": runs(*[25e-6] * 4), "theirs": runs(*[20e-6] * 4)})
    assert line.figure.value == pytest.approx(0.5)
    assert (line.verdict, line.limit) == ("passed", "<= 1 µs per plugin")


def test_variants_that_did_different_work_do_not_pass():
    check = lambda a, b, warmup: "the sums differ"  # noqa: E731
    line = one(2.0, runs(1, 1, 1, 1), runs(1, 1, 1, 1), checks=(("ours", "theirs", check),))
    assert line.verdict == "error"
    assert re.search(facts("ours", "theirs", "the sums differ"), line.why)


def test_the_error_of_a_variant_is_the_reason():
    line = one(2.0, [{"error": "no such processor"}], runs(1.0))
    assert line.verdict == "error"
    assert re.search(facts("ours", "no such processor"), line.why)


def test_a_timing_on_a_busy_machine_is_marked_and_given_by_processor_time():
    line = one(
        2.0, runs(1, 1, 1, 1, cpu_seconds=3.0) + runs(1, others=0.5, cpu_seconds=3.0), runs(*[1] * 4, cpu_seconds=2)
    )
    (note,) = line.notes
    assert line.noisy and re.search(facts("processor time", "ratio", "1.50"), note)


@pytest.mark.parametrize(
    ("interval", "better", "verdict"),
    [
        ((1.2, 1.1, 1.3), "lower", "worse"),
        ((1.2, 1.1, 1.3), "higher", "better"),
        ((1.2, 1.1, 1.3), None, "differs"),
        ((1.0, 0.97, 1.03), "lower", "alike"),
        ((1.02, 0.8, 1.3), "lower", "undecided"),
    ],
)
def test_which_of_two_is_better(interval, better, verdict):
    assert verdict_on_change(Interval(*interval), better, runs=6)[0] == verdict


def test_an_impossible_case_is_refused_as_it_is_written():
    with pytest.raises(ValueError, match=facts("case 'c'", "'x'", "'a'")):
        Case(name="c", variants={"a": len}, baseline="x")
    with pytest.raises(ValueError, match=facts("at_least", "at_most")):
        Target(variant="a")
    with pytest.raises(ValueError, match=facts("'a'", "function", "driver")):
        Variant("a")
    with pytest.raises(ValueError, match=facts("'a'", "<lambda>")):
        Variant("a", lambda: None, isolated=True)


def test_a_peer_that_is_not_installed_is_no_error():
    missing = [{"error": "Lightning is not installed", "not_installed": True}]
    line = one(1.1, runs(1.0, 1.0, 1.0, 1.0), missing)
    assert line.verdict == "not installed" and "Lightning is not installed" in line.why
    assert one(1.1, [{"error": "broke"}], missing).verdict == "error"
