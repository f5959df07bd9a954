"""``events.jsonl``: what happened when, for whoever looks at a run afterwards."""

from __future__ import annotations

import json

import pytest

from hooktrain import hookimpl
from hooktrain.builtins import event_log
from tests.facts import facts


def events_in(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


SAVES = {"type": "full", "save_every_n_steps": 3, "save_end_of_training": False, "auto_resume": True}


def test_events_of_a_run_and_of_the_one_that_resumes_it(run_tiny, tmp_path):
    class Warns:
        @hookimpl
        def on_step_end(self, trainer):
            if trainer.global_step == 2:
                trainer.host.warn("something odd")

    with pytest.warns(UserWarning, match="odd"):
        first = run_tiny(Warns(), checkpoint=SAVES, exit_iteration=4)
    run_tiny(checkpoint=SAVES)
    found = events_in(tmp_path / "run")
    saved = str(tmp_path / "run" / "checkpoints" / "step-00000003")
    assert [(each["kind"], each["step"], each.get("text")) for each in found[:6]] == [
        ("start", 0, None),
        ("warning", 2, "something odd"),
        ("checkpoint", 3, saved),
        ("evaluation", 4, None),
        ("end", 4, None),
        ("resume", 3, saved),
    ]
    assert {each["run"] for each in found} == {first.run_id}
    assert [each["time"] for each in found] == sorted(each["time"] for each in found)


def test_a_failure_is_an_event(run_tiny, tmp_path):
    class Raises:
        @hookimpl
        def on_step_end(self, trainer):
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError):
        run_tiny(Raises())
    assert [(each["kind"], each.get("text")) for each in events_in(tmp_path / "run")] == [
        ("start", None),
        ("failure", "RuntimeError: enough"),
        ("end", None),
    ]


def test_memory_is_sampled_and_samples_become_rarer(run_tiny, tmp_path, monkeypatch):
    seconds = iter(range(0, 10**6, 100))
    monkeypatch.setattr(event_log.time, "monotonic", lambda: next(seconds))
    monkeypatch.setattr(event_log, "_SAMPLES", 2)
    run_tiny()
    memory = [each for each in events_in(tmp_path / "run") if each["kind"] == "memory"]
    assert 0 < len(memory) < 7 and all(each["process"] > 2**20 for each in memory)


def test_without_metrics_there_are_no_events(run_tiny, tmp_path):
    run_tiny(jsonl={"enabled": False})
    assert not (tmp_path / "run" / "events.jsonl").exists()


def test_a_file_that_cannot_be_written_does_not_end_the_run(run_tiny, tmp_path):
    (tmp_path / "run" / "events.jsonl").mkdir(parents=True)
    with pytest.warns(UserWarning, match=facts("events.jsonl", "directory", "continues")):
        assert run_tiny().global_step == 7
