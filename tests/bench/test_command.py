"""The command ``hooktrain bench``."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from hooktrain.bench.machine import describe
from hooktrain.bench.results import read
from hooktrain.bench.tables import number, print_line
from hooktrain.inspection.terminal import console
from tests.bench.napping import Napping
from tests.facts import facts


def test_suites_are_listed_without_an_argument(bench):
    assert "napping" in bench().output
    listed = {"name": "napping", "plugin": f"{Napping.__module__}:Napping", "summary": "naps"}
    assert listed in json.loads(bench("--json").output)


def test_a_suite_is_measured_and_written_down(bench, tmp_path, on_terminal):
    shown = bench("napping", "--out", "found")
    assert shown.exit_code == 0, shown.output
    assert "twice to once" in shown.output and "worse" in shown.output
    (line,) = [json.loads(text) for text in (tmp_path / "found" / "results.jsonl").read_text().splitlines()]
    for name in (
        "date",
        "commit",
        "machine",
        "versions",
        "settings",
        "parameters",
        "recipe",
        "variants",
        "comparisons",
    ):
        assert name in line
    assert len(line["variants"]["twice"]["values"]["seconds"]) == 4
    (compared,) = line["comparisons"]
    assert compared["figure"][0] == pytest.approx(2, rel=0.05)
    assert max(map(len, on_terminal(80, lambda: print_line(line, console())))) <= 80


def test_json_for_programs(bench):
    shown = bench("napping", "--quick", "--json")
    assert json.loads(shown.stdout)["case"] == "ten"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("napping", "--set", "nap=3"), ["--set nap:", "napping"]),
        (("napping", "--threads", "9999"), ["--threads:", "9999", f" {describe()['cores']} cores"]),
        (("napping", "--out", "/proc/nope"), ["--out:", "'/proc/nope'"]),
        (("napping", "--out", "file/below"), ["--out:", "'file/below'"]),
        (("plugin", "jsonl", "--out", "file/below"), ["--out:", "'file/below'"]),
        (("napping", "--baseline", "other.jsonl"), ["--baseline:", " s:c"]),
        (("napping", "--baseline", "torn.jsonl"), ["torn.jsonl", "line 2", "JSON"]),
        (("--baseline", "other.jsonl"), ["--baseline:", "suites", "--compare A B"]),
        (("--compare", "other.jsonl", "other.jsonl", "napping"), ["--compare:", "two results", "--baseline"]),
        (("--compare", "a", "b", "--tolerance", "-1"), ["--tolerance", "-1.0"]),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(bench, tmp_path, monkeypatch, words, named):
    if words[0] == "plugin":
        monkeypatch.setenv("HOOKTRAIN_PLUGINS", "")
    (tmp_path / "file").write_text("")
    (tmp_path / "other.jsonl").write_text('{"suite": "s", "case": "c"}\n')
    (tmp_path / "torn.jsonl").write_text('{"suite": "napping", "case": "ten"}\n{"suite": "napp')
    shown = bench(*words)
    assert shown.exit_code in (1, 2)
    assert re.search(facts(*named), f"{shown.exception} {shown.output} {shown.stderr}"), (shown.exception, shown.output)
    assert not list(tmp_path.glob("runs/bench/*/results.jsonl")), "nothing was measured"


SLOW = """
from hooktrain import hookimpl
from hooktrain.bench import Case, Variant, Suite

@hookimpl
def register_benchmarks():
    short = Case(name="short", variants={"a": lambda: {"seconds": 1.0}})
    long = Case(name="long", variants=[Variant("sleeps", driver="sleeps")])
    return [Suite(name="slow", summary="sleeps", cases=[short, long])]
"""
SLEEPS = """
import os, time
from pathlib import Path
from hooktrain.bench.driver import drive

def measure(given):
    Path(os.environ["SAID"]).write_text(str(os.getpid()))
    time.sleep(120)

if __name__ == "__main__":
    drive(measure)
"""


NO_MATPLOTLIB = "raise ModuleNotFoundError('no', name='matplotlib')\n"


@pytest.mark.parametrize(
    ("number", "matplotlib", "shown"),
    [
        (signal.SIGTERM, "", ["found/index.html"]),
        (signal.SIGINT, NO_MATPLOTLIB, [" found", "pip install 'hooktrain[bench]'"]),
    ],
    ids=["SIGTERM", "SIGINT"],
)
def test_a_signal_ends_what_was_started_and_shows_what_was_measured(tmp_path, number, matplotlib, shown):
    if matplotlib:
        (tmp_path / "matplotlib.py").write_text(matplotlib)
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
    assert re.search(facts(*shown), errors), errors
    assert [line["case"] for line in read(tmp_path / "found")] == ["short"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(said.read_text()), 0)


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
    code = "import sys, hooktrain.cli.main, hooktrain.bench.driver; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
