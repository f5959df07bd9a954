"""The harness: suites of plugins are measured side by side, judged only where that is fair, and written down."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from hooktrain import hookimpl
from hooktrain.bench import (
    CPU_SECONDS,
    SECONDS,
    BenchError,
    Case,
    Metric,
    Peer,
    Settings,
    Side,
    Skip,
    Suite,
    Target,
    run_suites,
)
from hooktrain.bench.calls import measure
from hooktrain.bench.compare import broken, changes, regressions, surprises
from hooktrain.bench.environments import EnvironmentFailed, ensure
from hooktrain.bench.machine import busy_seconds, describe
from hooktrain.bench.measuring import StepClock
from hooktrain.bench.page import write_page
from hooktrain.bench.plots import draw
from hooktrain.bench.plugin_cost import print_report
from hooktrain.bench.ratios import Interval, difference_of_medians, ratio_of_medians, ratio_of_ratios, rounds_needed
from hooktrain.bench.results import find, read
from hooktrain.bench.running import gather, select
from hooktrain.bench.tables import number, print_line
from hooktrain.bench.verdicts import compare_sides, verdict_on_change
from hooktrain.cli import cli
from hooktrain.errors import PluginError
from hooktrain.report.text import console
from hooktrain.testing import host_of

# ---------------------------------------------------------------------------------------------------- statistics


def test_medians_of_two_runs_are_one_of_three_numbers():
    # drawn from 1 and 3, a median is 1, 2 or 3, the outer ones with a probability of a quarter each
    assert ratio_of_medians([1.0, 3.0], [1.0, 1.0]) == (2.0, 1.0, 3.0)
    assert difference_of_medians([1.0, 3.0], [1.0, 1.0]) == (1.0, 0.0, 2.0)
    assert ratio_of_ratios(([4.0, 4.0], [2.0, 2.0]), ([3.0, 3.0], [3.0, 3.0])) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("turns", [6, 10])
def test_what_slows_both_sides_of_a_turn_leaves_the_ratio_alone(turns):
    """A machine that drifts by 15% from turn to turn, and sides that are alike but for 3% of noise."""
    draw, held, widths = random.Random(7), 0, {True: 0.0, False: 0.0}
    for _ in range(150):
        drift = [math.exp(draw.gauss(0, 0.15)) for _ in range(turns)]
        sides = [[each * math.exp(draw.gauss(0, 0.03)) for each in drift] for _ in range(2)]
        for in_turns in widths:
            _, low, high = ratio_of_medians(*sides, samples=200, in_turns=in_turns)
            widths[in_turns] += high - low
            held += in_turns and low <= 1 <= high
    assert 0.9 * 150 <= held <= 0.99 * 150, "what is called 95% holds the truth about as often"
    assert widths[True] < widths[False] / 2.5


def test_few_turns_are_drawn_each_side_by_itself():
    drift = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert ratio_of_medians(drift, drift).high > 1
    assert ratio_of_medians([*drift, 6.0], [*drift, 6.0]) == (1, 1, 1)
    assert ratio_of_medians([*drift, 6.0], [*drift, 6.0], in_turns=False).high > 1, "of two measurements"


def test_one_run_has_no_interval():
    assert ratio_of_medians([3.0], [2.0, 2.0]) == (1.5, None, None)


def test_no_run_is_an_error():
    with pytest.raises(ValueError, match="given no measurements"):
        ratio_of_medians([], [1.0])


@given(
    st.lists(st.floats(0.5, 100), min_size=2, max_size=6),
    st.lists(st.floats(0.5, 100), min_size=2, max_size=6),
    st.sampled_from([0.5, 4.0]),
)
def test_a_ratio_does_not_depend_on_the_unit(one, other, factor):
    value, low, high = ratio_of_medians(one, other, samples=200)
    assert low is not None and high is not None and min(one) / max(other) <= low <= high <= max(one) / min(other)
    scaled = ratio_of_medians([factor * number for number in one], other, samples=200)
    assert scaled == pytest.approx((factor * value, factor * low, factor * high))


def test_rounds_that_might_do():
    # half the width is twice the distance, so that four times the rounds put the limit just outside
    assert rounds_needed(Interval(1.05, 1.01, 1.15), 1.10, rounds=5) == pytest.approx(5 * 4 * 1.2, abs=1)
    assert rounds_needed(Interval(1.10, 1.0, 1.2), 1.10, rounds=5) is None
    assert rounds_needed(Interval(1.0999, 1.0, 1.2), 1.10, rounds=5) is None, "over a thousand"


# ------------------------------------------------------------------------------------------------------ verdicts


def runs(*seconds: float, **more: float) -> list[dict]:
    return [{"seconds": each, "others": 0.0, **more} for each in seconds]


def one(limit: float, ours: list[dict], theirs: list[dict], **more) -> object:
    case = Case(name="c", sides={"ours": len, "theirs": len}, targets=[Target(side="ours", at_most=limit, **more)])
    (line,) = compare_sides(case, {"ours": ours, "theirs": theirs})
    return line


def test_a_verdict_needs_the_whole_interval_on_one_side():
    theirs = runs(1.0, 1.0, 1.0, 1.0)
    assert one(1.1, runs(1.05, 1.06, 1.05, 1.07), theirs).verdict == "reached"
    assert one(1.1, runs(1.25, 1.26, 1.25, 1.27), theirs).verdict == "missed"
    line = one(1.1, runs(1.0, 1.2, 1.0, 1.2, 1.0), theirs)
    assert line.verdict == "undecided"
    assert "the interval, 1 to 1.2, holds 1.1" in line.why and "rounds" in line.why


def test_few_runs_get_no_verdict_unless_they_repeat_exactly():
    line = one(1.1, runs(1.0, 1.0), runs(1.0, 1.0))
    assert line.verdict == "undecided" and "2 runs of each side say too little" in line.why
    bytes_ = Metric("bytes", "MiB", exact=True)
    case = Case(name="c", sides={"a": len, "b": len}, metrics=[bytes_], targets=[Target(side="a", at_most=1.0)])
    (line,) = compare_sides(case, {"a": [{"bytes": 5}], "b": [{"bytes": 5}]})
    assert line.verdict == "reached"


def test_a_difference_for_each_plugin():
    metric = Metric("seconds", "µs", scale=1e6)
    target = Target(side="ours", kind="difference", per=10, at_most=1.0, unit="µs per plugin")
    case = Case(name="c", sides={"ours": len, "theirs": len}, metrics=[metric], targets=[target], compare=False)
    (line,) = compare_sides(case, {"ours": runs(*[25e-6] * 4), "theirs": runs(*[20e-6] * 4)})
    assert line.figure.value == pytest.approx(0.5)
    assert (line.verdict, line.limit) == ("reached", "<= 1 µs per plugin")


def test_sides_that_did_not_do_the_same_have_reached_nothing():
    check = lambda a, b, warmup: "the sums differ"  # noqa: E731
    line = one(2.0, runs(1, 1, 1, 1), runs(1, 1, 1, 1), checks=(("ours", "theirs", check),))
    assert (line.verdict, line.why) == ("failed", "ours and theirs: the sums differ")


def test_a_side_that_fails_says_why():
    line = one(2.0, [{"failed": "no such processor"}], runs(1.0))
    assert (line.verdict, line.why) == ("failed", "ours: no such processor")


def test_a_timing_beside_other_work_is_marked_and_told_by_processor_time():
    line = one(
        2.0, runs(1, 1, 1, 1, cpu_seconds=3.0) + runs(1, others=0.5, cpu_seconds=3.0), runs(*[1] * 4, cpu_seconds=2)
    )
    assert line.noisy and line.notes == ("by processor time the ratio is 1.50",)


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
    with pytest.raises(ValueError, match="the baseline 'x' is no side of it"):
        Case(name="c", sides={"a": len}, baseline="x")
    with pytest.raises(ValueError, match="expected one of at_least and at_most"):
        Target(side="a")
    with pytest.raises(ValueError, match="given neither a function and a driver"):
        Side("a")
    with pytest.raises(ValueError, match="is imported by name in another process"):
        Side("a", lambda: None, isolated=True)


# ----------------------------------------------------------------------------------------------------- measuring


def test_sides_take_turns_forth_and_back_after_a_warm_up():
    order: list[str] = []
    sides = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    (line,) = run_suites([Suite(name="s", summary="", cases=[Case(name="c", sides=sides)])], Settings(rounds=2))
    assert order == list("aabbbaabba"), "each once before its first run, then A B B A A B B A"
    assert len(line["runs"]["a"]) == 4 and line["settings"]["turns"] == 4


def test_calls_fill_a_run_and_figures_are_for_one():
    case = Case(name="c", sides={"nothing": lambda: None}, calls=None)
    (line,) = run_suites([Suite(name="s", summary="", cases=[case])], Settings(rounds=1))
    (first, _) = line["runs"]["nothing"]
    assert first["calls"] > 1000
    assert 0 < first["seconds"] < 1e-4 and first["cpu_seconds"] < 1e-4


def test_prepare_does_not_count_and_comes_first():
    side = Side("s", lambda made, n: {"got": made + n}, prepare=lambda n: time.sleep(0.3) or 40)
    case = Case(name="c", parameters={"n": 2}, sides=[side], metrics=[SECONDS, Metric("got")])
    (line,) = run_suites([Suite(name="s", summary="", cases=[case])], Settings(rounds=1))
    assert line["sides"]["s"]["values"]["got"] == [42, 42]
    assert min(line["sides"]["s"]["values"]["seconds"]) < 0.3


APART = """
import os

def where():
    return {"pid": os.getpid(), "kept": len(bytearray(200 * 2**20))}
"""


def test_an_isolated_side_has_a_process_for_each_run(tmp_path, monkeypatch):
    (tmp_path / "a_module_apart.py").write_text(APART)
    monkeypatch.syspath_prepend(str(tmp_path))
    where = importlib.import_module("a_module_apart").where
    case = Case(
        name="c", sides=[Side("apart", where, isolated=True)], metrics=[Metric("peak_mib", "MiB"), Metric("kept")]
    )
    (line,) = run_suites([Suite(name="s", summary="", cases=[case])], Settings(rounds=1))
    pids = {run["pid"] for run in line["runs"]["apart"]}
    assert len(pids) == 2 and os.getpid() not in pids
    assert all(200 < peak < 400 for peak in line["sides"]["apart"]["values"]["peak_mib"])
    assert line["runs"]["apart"][0]["versions"]["hooktrain"]


DRIVER = """
from hooktrain.bench.measuring import StepClock, drive

def measure(given):
    print("noise of a library")
    clock = StepClock()
    for n in range(4):
        clock.step(tokens=10 * n)
    return clock.findings() | {"threads": __import__("os").environ["OMP_NUM_THREADS"], "given": given}

drive(measure, "pytest")
"""


def test_a_driver_reports_steps_and_the_first_are_thrown_away(tmp_path, monkeypatch):
    (tmp_path / "a_driver.py").write_text(DRIVER)
    monkeypatch.syspath_prepend(str(tmp_path))
    side = Side("driven", driver="a_driver", specification={"steps": 4})
    bad = Side("bad", driver="a_driver_that_is_not_there")
    case = Case(name="c", sides=[side, bad], metrics=[Metric("tokens")], warmup_steps=2, baseline="driven")
    (line,) = run_suites([Suite(name="s", summary="", cases=[case])], Settings(rounds=1, threads=1))
    (first, _) = line["runs"]["driven"]
    assert first["tokens"] == [0, 10, 20, 30] and first["threads"] == "1"
    assert first["given"] == {"threads": 1, "steps": 4}
    assert line["sides"]["driven"]["values"]["tokens"] == [25, 25]
    (failed,) = line["runs"]["bad"]  # a side that has failed is not tried again
    assert "No module named a_driver_that_is_not_there" in failed["failed"]


def test_a_driver_that_takes_too_long_is_ended(tmp_path, monkeypatch):
    (tmp_path / "a_slow_driver.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    case = Case(name="c", sides=[Side("slow", driver="a_slow_driver")])
    began = time.monotonic()
    (line,) = run_suites([Suite(name="s", summary="", cases=[case])], Settings(rounds=1, timeout=0.5))
    assert line["sides"]["slow"]["failed"] == "no result after 0 s" and time.monotonic() - began < 20


def test_a_quick_measurement_installs_nothing(tmp_path):
    (tmp_path / "peer.txt").write_text("a-package==1.0\n")
    with pytest.raises(EnvironmentFailed, match="peer is not installed yet, which a quick measurement leaves alone"):
        ensure(Peer(name="peer", requirements=[tmp_path / "peer.txt"]), tmp_path / "envs", only_find=True)


def test_a_clock_keeps_each_step():
    clock = StepClock()
    clock.step(tokens=5, loss=1.0)
    clock.step(tokens=7, loss=0.5)
    findings = clock.findings()
    assert findings["tokens"] == [5, 7] and findings["loss"] == [1.0, 0.5]
    assert len(findings["seconds"]) == 2 and min(findings["seconds"]) >= 0


class StandIn:
    """What is used of ``torch.cuda``: a device whose clock goes on by 20 ms with each piece of work."""

    def __init__(self):
        self.now, self.heard = 0.0, []

    def Event(self, enable_timing):
        assert enable_timing
        device = self

        class Event:
            def record(self):
                self.at = device.now
                device.heard.append("record")

            def synchronize(self):
                device.heard.append("wait")

            def elapsed_time(self, other):
                return other.at - self.at

        return Event()

    def work(self):
        self.now += 20.0
        self.heard.append("work")

    def synchronize(self):
        self.heard.append("wait")

    def reset_peak_memory_stats(self):
        self.heard.append("forget")

    def max_memory_allocated(self):
        return 3 * 2**20


def test_on_a_device_calls_are_timed_by_events(monkeypatch):
    device = StandIn()
    monkeypatch.setattr("hooktrain.bench.calls.gpu", lambda: device)
    found = measure(device.work, calls=2)
    assert device.heard == ["wait", "forget", "record", "work", "work", "record", "wait"]
    assert (found["device_seconds"], found["device_peak_mib"]) == (0.02, 3.0)


def test_on_a_device_steps_are_timed_by_events_that_nobody_waits_for_before_the_end(monkeypatch):
    device = StandIn()
    monkeypatch.setattr("hooktrain.bench.measuring.gpu", lambda: device)
    clock = StepClock()
    clock.start()  # some begin anew once everything is there
    for _ in range(3):
        device.work()
        clock.step()
    assert "wait" not in device.heard
    assert clock.findings()["device_seconds"] == [0.02, 0.02, 0.02]


def test_the_machine_describes_itself():
    assert describe()["cores"] >= 1 and describe()["processor"]
    before = busy_seconds()
    if before is not None:
        sum(range(3_000_000))
        assert busy_seconds() >= before


# ------------------------------------------------------------------------------------------------- contributing


class Sorting:
    """A plugin as its author would write it."""

    @hookimpl
    def register_benchmarks(self):
        case = Case(name="ten", parameters={"n": 10}, sides={"twice": naps_of(2), "once": naps_of(1)}, rounds=3)
        return [Suite(name="napping", summary="naps", cases=[case])]


def naps_of(seconds: float):
    """Tells what it takes itself, so that no test depends on how busy the machine is."""
    noise = itertools.cycle((1.0, 1.01, 0.99))
    return lambda n=0: {"seconds": seconds * next(noise), "others": 0.0}


def test_plugins_contribute_suites():
    known = gather(host_of(Sorting()))
    suite, plugin = known["napping"]
    assert plugin == "Sorting"
    assert select(["napping:ten"], known) == [(suite, frozenset({"ten"}))]
    assert select(["napping:ten", "napping"], known) == [(suite, None)]
    with pytest.raises(BenchError, match=r"no suite is named 'naping' \(did you mean 'napping'\?\)"):
        select(["naping"], known)
    with pytest.raises(BenchError, match="has no case 'tan' .did you mean 'ten'..; there are ten$"):
        run_suites([(suite, frozenset({"tan"}))])
    with pytest.raises(BenchError, match="has no case 'two' in --quick; there are ten$"):
        run_suites([(suite, frozenset({"two", "ten"}))], Settings(quick=True))


def test_two_plugins_with_one_suite_are_named():
    with pytest.raises(PluginError, match="'Sorting-2' and 'Sorting' both contribute the suite 'napping'"):
        gather(host_of(Sorting(), Sorting()))


def test_a_suite_that_cannot_be_measured_here_says_why():
    def cases(context):
        raise Skip("there is no GPU here")
        yield

    said: list[str] = []
    (line,) = run_suites([Suite(name="gpu", summary="", cases=cases)], say=said.append)
    assert line == {"suite": "gpu", "skipped": "there is no GPU here"} and said == [
        "gpu: skipped: there is no GPU here"
    ]


# ------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """``bench(word, ...)``: the command line with the suite above, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOOKTRAIN_PLUGINS", f"no:*,{__name__}:Sorting")

    def run(*words: str):
        return CliRunner().invoke(cli, ["bench", *words])

    return run


def test_suites_are_listed_without_an_argument(bench):
    assert "napping" in bench().output
    assert {"name": "napping", "plugin": f"{__name__}:Sorting", "summary": "naps"} in json.loads(bench("--json").output)


def test_a_suite_is_measured_and_written_down(bench, tmp_path, on_terminal):
    shown = bench("napping", "--out", "found")
    assert shown.exit_code == 0, shown.output
    assert "twice to once" in shown.output and "worse" in shown.output
    (line,) = [json.loads(text) for text in (tmp_path / "found" / "results.jsonl").read_text().splitlines()]
    for name in ("date", "commit", "machine", "versions", "settings", "parameters", "recipe", "sides", "comparisons"):
        assert name in line
    assert len(line["sides"]["twice"]["values"]["seconds"]) == 6
    (compared,) = line["comparisons"]
    assert compared["figure"][0] == pytest.approx(2, rel=0.05)
    assert max(map(len, on_terminal(80, lambda: print_line(line, console())))) <= 80


def test_json_for_programs(bench):
    shown = bench("napping", "--quick", "--json")
    assert json.loads(shown.stdout)["case"] == "ten"


def with_seconds(line: dict, side: str, factor: float) -> dict:
    changed = json.loads(json.dumps(line))
    values = changed["sides"][side]["values"]
    values["seconds"] = [factor * value for value in values["seconds"]]
    return changed


def test_a_regression_is_told_by_the_exit_status(bench, tmp_path, on_terminal):
    assert bench("napping", "--out", "found").exit_code == 0
    (line,) = read(tmp_path / "found")
    (tmp_path / "faster.jsonl").write_text(json.dumps(with_seconds(line, "twice", 0.5)) + "\n")
    (tmp_path / "same.jsonl").write_text(json.dumps(line) + "\n")
    failed = bench("napping", "--baseline", "faster.jsonl")
    assert failed.exit_code == 1
    assert "regression: napping: ten, twice: seconds" in failed.stderr
    assert bench("napping", "--baseline", "same.jsonl").exit_code == 0
    compared = bench("--compare", "faster.jsonl", "found")
    assert compared.exit_code == 0 and "regression" in compared.output
    within = bench("--compare", "faster.jsonl", "found", "--tolerance", "1").output
    assert "regression" not in within and "worse: by no more than --tolerance" in within
    compare = ["bench", "--compare", "faster.jsonl", "found"]
    assert max(map(len, on_terminal(80, lambda: cli(compare, standalone_mode=False)))) <= 80


def test_a_slower_machine_is_no_regression(bench, tmp_path):
    bench("napping", "--out", "found")
    (line,) = read(tmp_path / "found")
    slow = with_seconds(with_seconds(line, "twice", 3), "once", 3)
    slow["machine"]["processor"] = "an old one"
    found = changes([line], [slow])
    assert {change.side: change.verdict for change in found} == {"twice": "alike", "once": "worse"}
    assert not regressions(found, same_machine=False)
    assert "other machines" in surprises([line], [slow])[0]


def test_a_side_that_fails_now_is_a_regression_and_a_peer_that_is_not_there_is_none(bench, tmp_path, monkeypatch):
    assert bench("napping", "--quick", "--out", "found").exit_code == 0
    monkeypatch.setattr(sys.modules[__name__], "naps_of", lambda seconds: lambda n=0: 1 / 0)
    shown = bench("napping", "--quick", "--baseline", "found")
    assert shown.exit_code == 1
    assert "regression: napping: ten, twice: failed: ZeroDivisionError" in shown.stderr
    assert bench("napping", "--quick").exit_code == 1, "a side failed"
    (line,) = read(tmp_path / "found")
    gone = {**line, "sides": {name: {"failed": "not installed", "absent": True} for name in line["sides"]}}
    assert broken([line], [gone]) == []


def test_a_peer_that_is_not_installed_has_not_failed():
    absent = [{"failed": "Lightning is not installed yet", "absent": True}]
    line = one(1.1, runs(1.0, 1.0, 1.0, 1.0), absent)
    assert line.verdict == "absent" and "Lightning is not installed yet" in line.why
    assert one(1.1, [{"failed": "broke"}], absent).verdict == "failed"


def test_times_that_stand_for_themselves_are_no_regression_beside_other_work(bench, tmp_path):
    bench("napping", "--out", "found")
    (line,) = read(tmp_path / "found")
    slow = with_seconds(with_seconds(line, "once", 3), "twice", 3)
    for quiet in (True, False):
        for facts in (*line["sides"].values(), *slow["sides"].values()):
            facts["others"] = 0.0 if quiet else 0.5
        worse = regressions(changes([line], [slow]), same_machine=True)
        assert [change.side for change in worse] == (["once"] if quiet else [])
        for name, lines in (("line", line), ("slow", slow)):
            (tmp_path / f"{name}.jsonl").write_text(json.dumps(lines) + "\n")
        assert ("regression " in bench("--compare", "line.jsonl", "slow.jsonl").output) == quiet


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("napping", "--set", "nap=3"), "--set nap: napping have no such setting; there is none"),
        (("napping", "--threads", "9999"), "--threads: given 9999, and this process may use"),
        (("napping", "--out", "/proc/nope"), "--out: '/proc/nope' cannot be written"),
        (("napping", "--out", "file/below"), "--out: 'file/below' cannot be written"),
        (("plugin", "jsonl", "--out", "file/below"), "--out: 'file/below' cannot be written"),
        (("napping", "--baseline", "other.jsonl"), "--baseline: has none of what is to be measured, but s:c"),
        (("napping", "--baseline", "torn.jsonl"), "line 2 is no JSON: .*remove it"),
        (("--baseline", "other.jsonl"), "--baseline: expected suites to measure"),
        (("--compare", "other.jsonl", "other.jsonl", "napping"), "--compare: takes two results and no suites"),
        (("--compare", "a", "b", "--tolerance", "-1"), "-1.0 is not in the range"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(bench, tmp_path, monkeypatch, words, said):
    if words[0] == "plugin":
        monkeypatch.setenv("HOOKTRAIN_PLUGINS", "")
    (tmp_path / "file").write_text("")
    (tmp_path / "other.jsonl").write_text('{"suite": "s", "case": "c"}\n')
    (tmp_path / "torn.jsonl").write_text('{"suite": "napping", "case": "ten"}\n{"suite": "napp')
    shown = bench(*words)
    assert shown.exit_code in (1, 2)
    assert re.search(said, f"{shown.exception} {shown.output} {shown.stderr}"), (shown.exception, shown.output)
    assert not list(tmp_path.glob("runs/bench/*/results.jsonl")), "nothing was measured"


def test_a_setting_that_is_no_number(tmp_path):
    def cases(context):
        context.whole_number("naps", 2)
        yield

    suite = Suite(name="s", summary="", cases=cases, options={"naps": "how many"})
    with pytest.raises(BenchError, match="--set naps: given 'many', expected a whole number, such as 2"):
        run_suites([suite], Settings(options={"naps": "many"}))
    with pytest.raises(
        BenchError, match=r"--set nap: s have no such setting \(did you mean 'naps'\?\); there are naps"
    ):
        run_suites([suite], Settings(options={"nap": "3"}))


def test_results_are_found_by_commit(tmp_path):
    line = {"suite": "s", "case": "c", "commit": "abcdef0123", "date": "2026-01-01"}
    (tmp_path / "old.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "new.jsonl").write_text(json.dumps({**line, "date": "2026-02-01"}) + "\n")
    assert find("abcdef", [tmp_path])[0]["date"] == "2026-02-01"
    with pytest.raises(BenchError, match="expected a file or folder of results"):
        find("abc999", [tmp_path])


def test_a_wrong_file_is_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text("[1]\n")
    with pytest.raises(BenchError, match="expected a file of results"):
        read(tmp_path / "x.jsonl")


def test_a_page_that_needs_nothing_else_and_pictures(bench, tmp_path):
    bench("napping", "--out", "found")
    page = (tmp_path / "found" / "index.html").read_text()
    assert "<svg" in page and "twice to once" in page and "worse" in page
    assert not re.search(r"<(script|link|img|iframe)|src=|@import|url\(http", page), "it loads nothing"
    assert (tmp_path / "found" / "napping.png").read_bytes().startswith(b"\x89PNG")


def test_a_suite_over_a_parameter_has_a_picture_for_each_metric(tmp_path):
    cases = [
        Case(
            name=str(n),
            parameters={"n": n},
            sides={"a": naps_of(n + 1), "b": naps_of(2)},
            metrics=[SECONDS, CPU_SECONDS],
        )
        for n in (0, 1, 100)
    ]
    lines = run_suites([Suite(name="s", summary="", cases=cases, over="n")], Settings(quick=True))
    write_page(lines, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "s.png", "s-2.png"}


def test_cases_without_the_parameter_have_a_picture_of_their_own(tmp_path):
    cases = [
        Case(name=str(n), parameters={"n": n} if n else {}, sides={"a": naps_of(n + 1), "b": naps_of(2)})
        for n in (0, 1, 2)
    ]
    lines = run_suites([Suite(name="s", summary="", cases=cases, over="n")], Settings(quick=True))
    over, ratios = draw(lines)
    assert [each.get_text() for each in ratios.axes[0].get_yticklabels()] == ["a to b, seconds ↓"]
    assert [each.get_text() for each in over.axes[0].get_xticklabels()] == ["1", "2"]


def test_without_matplotlib_there_are_results_and_a_sentence(bench, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in ("plots", "page"):
        monkeypatch.delitem(sys.modules, f"hooktrain.bench.{name}", raising=False)
    shown = bench("napping", "--quick", "--out", "found")
    assert shown.exit_code == 0
    assert "for plots install matplotlib: pip install 'hooktrain[bench]'" in shown.stderr
    assert (tmp_path / "found" / "results.jsonl").exists()


SLOW = """
from hooktrain import hookimpl
from hooktrain.bench import Case, Side, Suite

@hookimpl
def register_benchmarks():
    short = Case(name="short", sides={"a": lambda: {"seconds": 1.0}})
    long = Case(name="long", sides=[Side("sleeps", driver="sleeps")])
    return [Suite(name="slow", summary="sleeps", cases=[short, long])]
"""
SLEEPS = """
import os, time
from pathlib import Path
from hooktrain.bench.measuring import drive

def measure(given):
    Path(os.environ["SAID"]).write_text(str(os.getpid()))
    time.sleep(120)

if __name__ == "__main__":
    drive(measure)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_what_was_started_and_shows_what_was_measured(tmp_path, number):
    (tmp_path / "slow_suite.py").write_text(SLOW)
    (tmp_path / "sleeps.py").write_text(SLEEPS)
    said = tmp_path / "said"
    words = [sys.executable, "-m", "hooktrain", "bench", "slow", "--rounds", "1", "--out", "found", "-p", "slow_suite"]
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    environment = {**os.environ, "HOOKTRAIN_PLUGINS": "no:*", "SAID": str(said), "PYTHONPATH": path}
    environment = {name: value for name, value in environment.items() if name != "HOOKTRAIN_CACHE"}
    with subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as started:
        while not said.exists() or not said.read_text():
            assert started.poll() is None, started.stderr.read()
            time.sleep(0.05)
        started.send_signal(number)
        _, errors = started.communicate(timeout=60)
    assert started.returncode == 128 + number
    assert "found/index.html" in errors
    assert [line["case"] for line in read(tmp_path / "found")] == ["short"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(said.read_text()), 0)


# ----------------------------------------------------------------------------------------------- cost of a plugin

COSTLY = """
import time
from hooktrain import hookimpl

@hookimpl
def on_step_end(trainer, output):
    time.sleep(0.1)
    output.total.item()
    output.total.item()

@hookimpl(wrapper=True)
def compute_loss():
    loss = yield
    return loss._replace(total=loss.total * CHANGE)
"""


@pytest.mark.parametrize(
    ("change", "sentence"),
    [(1, "are equal, bit by bit: it does not change the training"), (2, "the losses differ from step 1 on")],
)
def test_what_a_plugin_costs_and_changes(tmp_path, monkeypatch, on_terminal, change, sentence):
    (tmp_path / f"costly_{change}.py").write_text(COSTLY.replace("CHANGE", str(change)))
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(
        cli,
        ["bench", "plugin", f"costly_{change}", "--quick", "--steps", "5", "--out", "o", "-p", "no:*", "-p", "torch"],
    )
    assert shown.exit_code == 0, shown.output
    assert sentence in shown.stdout
    assert "hooks: compute_loss, on_step_end" in shown.stdout
    (line,) = read(tmp_path / "o")
    assert max(map(len, on_terminal(80, lambda: print_report(line, console())))) <= 80
    reads = {side: facts["values"]["host_reads"][0] for side, facts in line["sides"].items()}
    assert reads["with"] == reads["without"] + 2
    assert min(line["sides"]["with"]["values"]["seconds"]) >= 0.1, "the plugin sleeps for as long in each step"
    assert all(seconds > 0 for seconds in line["sides"]["without"]["values"]["seconds"])
    assert all(facts["values"]["start_seconds"] for facts in line["sides"].values())


def test_a_recipe_that_cannot_run_without_the_plugin_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["bench", "plugin", "torch", "--quick", "--steps", "3", "-p", "no:*"]
    shown = CliRunner().invoke(cli, words)
    assert shown.exit_code == 0
    assert "without it, the recipe cannot run" in shown.stdout


@pytest.mark.parametrize("named", ["line", "environment", "recipe"])
def test_the_side_without_the_plugin_is_without_it_however_it_was_named(tmp_path, monkeypatch, named):
    (tmp_path / "stops.py").write_text(
        "from hooktrain import hookimpl\n\n@hookimpl\ndef on_step_end(trainer):\n"
        "    if trainer.global_step == 3:\n        trainer.request_stop('enough')\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["bench", "plugin", "stops", "--quick", "-p", "no:*", "-p", "torch"]
    if named == "recipe":
        recipe = {"type": "tiny", "micro_batch_size": 1, "plugins": {"load": ["stops", "hooktrain.testing:TinyPlugin"]}}
        recipe |= {"strategy": {"dtype": "fp32", "device": "cpu"}, "console": {"enabled": False}}
        (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
        words.insert(3, "recipe.yaml")
    shown = CliRunner().invoke(
        cli, words + ["-p", "stops"] * (named == "line"), env={"HOOKTRAIN_PLUGINS": "stops" * (named == "environment")}
    )
    assert shown.exit_code == 0, shown.output
    assert "8 losses without it and 3 with it" in shown.stdout


def test_a_plugin_that_is_not_there(bench):
    shown = bench("plugin", "jsnl")
    assert shown.exit_code == 1 and "'jsnl' is neither an installed plugin nor a module" in str(shown.exception)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.00001234, "s", "12.3 µs"),
        (0.5, "s", "500 ms"),
        (12.345, "s", "12.3 s"),
        (2048, "MiB", "2 GiB"),
        (0, "s", "0 s"),
        (3e-10, "s", "0.30 ns"),
        (1234.5, "tok/s", "1,234 tok/s"),
        (None, "s", "-"),
    ],
)
def test_numbers_are_readable(value, unit, text):
    assert number(value, unit) == text


@pytest.mark.usefixtures("real_starts")
def test_help_imports_no_torch():
    code = "import sys, hooktrain.cli, hooktrain.bench.measuring; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
