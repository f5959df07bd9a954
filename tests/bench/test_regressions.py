"""Comparison of results with earlier ones: what is a regression."""

from __future__ import annotations

import json
import re

import pytest

from hooktrain.bench import BenchError
from hooktrain.bench.regressions import broken, changes, machine_differences
from hooktrain.bench.results import find, read
from hooktrain.cli.main import cli
from tests.bench import napping
from tests.bench.napping import with_seconds
from tests.facts import facts


def test_a_regression_changes_the_exit_status(bench, line, tmp_path, on_terminal):
    (tmp_path / "faster.jsonl").write_text(json.dumps(with_seconds(line, "twice", 0.5)) + "\n")
    (tmp_path / "found.jsonl").write_text(json.dumps(line) + "\n")
    failed = bench("napping", "--baseline", "faster.jsonl")
    assert failed.exit_code == 1
    assert re.search(facts("regression", "napping", "ten, twice", "seconds"), failed.stderr)
    assert bench("napping", "--baseline", "found.jsonl").exit_code == 0
    compared = bench("--compare", "faster.jsonl", "found.jsonl")
    assert compared.exit_code == 0 and "regression" in compared.output
    within = bench("--compare", "faster.jsonl", "found.jsonl", "--tolerance", "1").output
    assert "regression" not in within and "--tolerance" in within
    compare = ["bench", "--compare", "faster.jsonl", "found.jsonl"]
    assert max(map(len, on_terminal(80, lambda: cli(compare, standalone_mode=False)))) <= 80


def test_a_slower_machine_is_no_regression(line):
    slow = with_seconds(with_seconds(line, "twice", 3), "once", 3)
    slow["machine"]["processor"] = "an old one"
    found = changes([line], [slow])
    assert {change.variant: change.verdict for change in found} == {"twice": "alike", "once": "worse"}
    assert not any(change.regression for change in found)
    assert re.search(facts("machines", "processor", "an old one"), machine_differences([line], [slow])[0])


def test_a_new_error_is_a_regression_and_a_missing_peer_is_none(bench, line, tmp_path, monkeypatch):
    (tmp_path / "found.jsonl").write_text(json.dumps(line) + "\n")
    monkeypatch.setattr(napping, "naps_of", lambda seconds: lambda n=0: 1 / 0)
    shown = bench("napping", "--quick", "--baseline", "found.jsonl")
    assert shown.exit_code == 1
    assert re.search(facts("regression", "napping", "ten, twice", "error", "ZeroDivisionError"), shown.stderr)
    assert bench("napping", "--quick").exit_code == 1, "a variant ended with an error"
    gone = {**line, "variants": {name: {"error": "not installed", "not_installed": True} for name in line["variants"]}}
    assert broken([line], [gone]) == []


def test_times_without_a_baseline_are_no_regression_on_a_busy_machine(bench, line, tmp_path):
    slow = with_seconds(with_seconds(line, "once", 3), "twice", 3)
    for quiet in (True, False):
        for measured in (*line["variants"].values(), *slow["variants"].values()):
            measured["others"] = 0.0 if quiet else 0.5
        worse = [change for change in changes([line], [slow]) if change.regression]
        assert [change.variant for change in worse] == (["once"] if quiet else [])
        for name, lines in (("line", line), ("slow", slow)):
            (tmp_path / f"{name}.jsonl").write_text(json.dumps(lines) + "\n")
        assert ("regression " in bench("--compare", "line.jsonl", "slow.jsonl").output) == quiet


def test_results_are_found_by_commit(tmp_path):
    line = {"suite": "s", "case": "c", "commit": "abcdef0123", "date": "2026-01-01"}
    (tmp_path / "old.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "new.jsonl").write_text(json.dumps({**line, "date": "2026-02-01"}) + "\n")
    assert find("abcdef", [tmp_path])[0]["date"] == "2026-02-01"
    with pytest.raises(BenchError, match=facts("'abc999'", "file or folder", "commit")):
        find("abc999", [tmp_path])


def test_a_file_of_hooktrain_0_1_is_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"suite": "s", "case": "c", "sides": {}}\n')
    with pytest.raises(BenchError, match=facts("x.jsonl", "line 1", "hooktrain 0.1", "measure again")):
        read(tmp_path / "x.jsonl")


def test_a_wrong_file_is_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text("[1]\n")
    with pytest.raises(BenchError, match=facts("x.jsonl", "`hooktrain bench`")):
        read(tmp_path / "x.jsonl")
