"""Variants in processes of their own: what they receive, what they report, and how they are killed."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
from typing import Any

import pytest

from hooktrain.bench import Case, Metric, Peer, Settings, Suite, Variant, run_suites
from hooktrain.bench.environments import EnvironmentFailed, ensure

APART = """
import os

def where():
    return {"pid": os.getpid(), "kept": len(bytearray(200 * 2**20))}
"""


def test_an_isolated_variant_has_a_process_for_each_run(tmp_path, monkeypatch):
    (tmp_path / "a_module_apart.py").write_text(APART)
    monkeypatch.syspath_prepend(str(tmp_path))
    where = importlib.import_module("a_module_apart").where
    case = Case(
        name="c", variants=[Variant("apart", where, isolated=True)], metrics=[Metric("peak_mib", "MiB"), Metric("kept")]
    )
    (line,) = run_suites([Suite(name="s", summary="", cases=[case])], Settings(rounds=1))
    pids = {run["pid"] for run in line["runs"]["apart"]}
    assert len(pids) == 2 and os.getpid() not in pids
    assert all(200 < peak < 400 for peak in line["variants"]["apart"]["values"]["peak_mib"])
    assert line["runs"]["apart"][0]["versions"]["hooktrain"]


DRIVER = """
from hooktrain.bench.driver import StepClock, drive

def measure(given):
    print("noise of a library")
    clock = StepClock()
    for n in range(4):
        clock.step(tokens=10 * n)
    return clock.findings() | {"threads": __import__("os").environ["OMP_NUM_THREADS"], "given": given}

drive(measure, "pytest")
"""


def test_a_driver_reports_steps_and_those_of_the_warm_up_are_dropped(tmp_path, monkeypatch):
    (tmp_path / "a_driver.py").write_text(DRIVER)
    monkeypatch.syspath_prepend(str(tmp_path))
    variant = Variant("driven", driver="a_driver", specification={"steps": 4})
    bad = Variant("bad", driver="a_driver_that_is_not_there")
    case = Case(name="c", variants=[variant, bad], metrics=[Metric("tokens")], warmup_steps=2, baseline="driven")
    (line,) = run_suites([Suite(name="s", summary="", cases=[case])], Settings(rounds=1, threads=1))
    (first, _) = line["runs"]["driven"]
    assert first["tokens"] == [0, 10, 20, 30] and first["threads"] == "1"
    assert first["given"] == {"threads": 1, "steps": 4}
    assert line["variants"]["driven"]["values"]["tokens"] == [25, 25]
    (failed,) = line["runs"]["bad"]  # a variant that has failed is not run again
    assert "No module named a_driver_that_is_not_there" in failed["error"]


RAISES = """
from hooktrain.bench.driver import drive

def measure(given):
    raise ValueError("3 errors\\n- first " + "x" * 300 + "\\n- second")

drive(measure)
"""


def test_the_error_of_a_driver_is_its_complete_message(tmp_path, monkeypatch, capfd):
    (tmp_path / "a_driver_that_raises.py").write_text(RAISES)
    monkeypatch.syspath_prepend(str(tmp_path))
    case = Case(name="c", variants=[Variant("raises", driver="a_driver_that_raises")])
    said: list[str] = []
    (line,) = run_suites([Suite(name="s", summary="", cases=[case])], Settings(rounds=1), say=said.append)
    message = "ValueError: 3 errors\n- first " + "x" * 300 + "\n- second"
    assert line["variants"]["raises"]["error"] == message
    assert "a_driver_that_raises.py" in capfd.readouterr().err, "its traceback"
    assert said[-1].endswith(" raises: ValueError: 3 errors"), "progress takes a line"
    expected = RAISES.replace("raise ValueError", "from hooktrain import DataError\n    raise DataError")
    (tmp_path / "a_driver_that_raises.py").write_text(expected)
    (line,) = run_suites([Suite(name="s", summary="", cases=[case])], Settings(rounds=1))
    assert line["variants"]["raises"]["error"] == message.replace("Value", "Data")
    assert "Traceback" not in capfd.readouterr().err, "the message says all"


def test_a_driver_that_takes_too_long_is_killed(tmp_path, monkeypatch):
    (tmp_path / "a_slow_driver.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    started = []

    class Started(subprocess.Popen):
        def __init__(self, words, **options: Any):
            super().__init__(words, **options)
            if "a_slow_driver" in words:
                started.append(self)

    monkeypatch.setattr("hooktrain.bench.subprocesses.subprocess.Popen", Started)
    case = Case(name="c", variants=[Variant("slow", driver="a_slow_driver")])
    (line,) = run_suites([Suite(name="s", summary="", cases=[case])], Settings(rounds=1, timeout=0.5))
    assert "after 0 s" in line["variants"]["slow"]["error"]
    assert [process.returncode for process in started] == [-signal.SIGKILL]


def test_a_quick_measurement_installs_nothing(tmp_path):
    (tmp_path / "peer.txt").write_text("a-package==1.0\n")
    with pytest.raises(EnvironmentFailed, match="peer.* not installed"):
        ensure(Peer(name="peer", requirements=[tmp_path / "peer.txt"]), tmp_path / "envs", only_find=True)
