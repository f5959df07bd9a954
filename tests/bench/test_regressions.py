"""Results compared with earlier ones: what is a regression, and what is none."""

from __future__ import annotations

import json
import re

import pytest

from hooktrain.bench import BenchError
from hooktrain.bench.regressions import broken, changes, regressions, surprises
from hooktrain.bench.results import find, read
from hooktrain.cli.main import cli
from tests.bench import napping
from tests.bench.napping import with_seconds
from tests.facts import facts


def test_a_regression_is_told_by_the_exit_status(bench, line, tmp_path, on_terminal):
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
    assert {change.side: change.verdict for change in found} == {"twice": "alike", "once": "worse"}
    assert not regressions(found, same_machine=False)
    assert re.search(facts("machines", "processor", "an old one"), surprises([line], [slow])[0])


def test_a_side_that_fails_now_is_a_regression_and_a_peer_that_is_not_there_is_none(bench, line, tmp_path, monkeypatch):
    (tmp_path / "found.jsonl").write_text(json.dumps(line) + "\n")
    monkeypatch.setattr(napping, "naps_of", lambda seconds: lambda n=0: 1 / 0)
    shown = bench("napping", "--quick", "--baseline", "found.jsonl")
    assert shown.exit_code == 1
    assert re.search(facts("regression", "napping", "ten, twice", "failed", "ZeroDivisionError"), shown.stderr)
    assert bench("napping", "--quick").exit_code == 1, "a side failed"
    gone = {**line, "sides": {name: {"failed": "not installed", "absent": True} for name in line["sides"]}}
    assert broken([line], [gone]) == []


def test_times_that_stand_for_themselves_are_no_regression_beside_other_work(bench, line, tmp_path):
    slow = with_seconds(with_seconds(line, "once", 3), "twice", 3)
    for quiet in (True, False):
        for measured in (*line["sides"].values(), *slow["sides"].values()):
            measured["others"] = 0.0 if quiet else 0.5
        worse = regressions(changes([line], [slow]), same_machine=True)
        assert [change.side for change in worse] == (["once"] if quiet else [])
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


def test_a_wrong_file_is_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text("[1]\n")
    with pytest.raises(BenchError, match=facts("x.jsonl", "`hooktrain bench`")):
        read(tmp_path / "x.jsonl")
