"""The record of a run says what became of it, also where its process could not."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hooktrain import HooktrainError, hookimpl
from hooktrain.runs.table import runs_in
from hooktrain.runs.watch import snapshots
from hooktrain.training.run_record import RunRecord, read_record
from tests.facts import facts


def record_in(folder: Path) -> RunRecord:
    found = read_record(folder)
    assert found is not None
    return found


def test_a_run_that_ended_and_one_that_failed(run_tiny, tmp_path):
    class Stops:
        @hookimpl
        def on_step_end(self, trainer):
            if trainer.global_step == 2:
                trainer.request_stop("enough", exit_status=3)

    class Fails:
        @hookimpl
        def on_log(self, trainer):
            if trainer.global_step == 2:
                raise OSError("no more")

    class Looks:
        seen: RunRecord

        @hookimpl
        def on_step_end(self, trainer):
            type(self).seen = record_in(trainer.run_dir)

    run_tiny(Looks)
    assert (Looks.seen.state, Looks.seen.step, Looks.seen.steps, Looks.seen.hook) == ("running", 7, 7, "on_step_end")
    found = record_in(tmp_path / "run")
    assert (found.state, found.step, found.status, found.hook, found.why) == ("ended", 7, 0, "", "")
    run_tiny(Stops(), run_dir=str(tmp_path / "stops"))
    found = record_in(tmp_path / "stops")
    assert (found.state, found.step, found.status, found.why) == ("ended", 2, 3, "enough")
    with pytest.raises(OSError, match="no more"):
        run_tiny(Fails(), run_dir=str(tmp_path / "fails"))
    found = record_in(tmp_path / "fails")
    assert (found.state, found.step, found.status, found.hook) == ("failed", 2, 1, "on_log")
    assert "no more" in found.why and "Fails" in found.why and "step 2" in found.why
    assert not list(tmp_path.glob("*/.run.position")), "nothing is left of it"


EXITS = """
import os, signal
from hooktrain import hookimpl

@hookimpl{kind}
def {hook}
    if trainer.global_step == 2 and not os.path.exists("once"):
        open("once", "w").close()
        {end}
"""
WRAPS = "(wrapper=True)"


@pytest.mark.parametrize(
    ("hook", "kind", "end", "status"),
    [
        ("on_step_end(trainer):", "", "os._exit(0)", 0),
        ("run_step(trainer, batches):\n    output = yield", WRAPS, "os.kill(os.getpid(), signal.SIGKILL)", -9),
    ],
    ids=["exits", "killed"],
)
def test_a_process_that_ends_without_finishing_is_told_of(run_cli, tiny_recipe, tmp_path, hook, kind, end, status):
    """The wrapper's hook is the one that runs, though others ended inside it just before."""
    source = EXITS.format(hook=hook, kind=kind, end=end) + ("    return output\n" if kind else "")
    name = hook.partition("(")[0]
    step = 2
    saves = {"type": "full", "save_every_n_steps": 2, "auto_resume": True}
    first = run_cli("train", {**tiny_recipe, "checkpoint": saves}, source=source)
    assert first.status == status, first.output
    (found,) = runs_in([tmp_path])
    assert (found["state"], found["step"], found["hook"]) == ("ended without finishing", step, name)
    shown = run_cli("runs", tmp_path / "run").stdout
    assert all(text in shown for text in ("ended without finishing", name, f"{step}/7", found["id"]))
    again = run_cli("train", {**tiny_recipe, "checkpoint": saves}, source=source)
    assert again.status == 0, again.output
    for text in ("ended without finishing", f"step {step} of 7", name, found["id"]):
        assert text in again.stderr
    (found,) = runs_in([tmp_path])
    assert (found["state"], found["step"], found["status"]) == ("ended", 7, 0)


def test_a_run_that_is_resumed_keeps_its_id_and_another_one_keeps_the_record_before_it(run_tiny, tmp_path):
    saves = {"checkpoint": {"type": "full", "save_every_n_steps": 3, "auto_resume": True}}
    first = run_tiny(**saves, exit_iteration=4)
    again = run_tiny(**saves)
    assert again.run_id == first.run_id and record_in(tmp_path / "run").starts == 2
    new = run_tiny(checkpoint=[], seed=3)
    assert new.run_id != first.run_id
    before = json.loads((tmp_path / "run" / "run.1.json").read_text())
    assert (before["id"], before["state"], before["step"]) == (first.run_id, "ended", 7)
    assert "seed: 42" in (tmp_path / "run" / "recipe.1.yaml").read_text()
    assert "seed: 3" in (tmp_path / "run" / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "[" * 100_000, '{"id": 3}', '{"id": "x", "step": "y"}', '{"id": "x", "saved": 1}', "folder"],
    ids=["empty", "torn", "list", "deep", "id", "step", "saved", "folder"],
)
def test_a_record_that_cannot_be_read_is_kept_and_blocks_nothing(run_tiny, tmp_path, text):
    path = tmp_path / "run" / "run.json"
    path.parent.mkdir()
    if text == "folder":
        path.mkdir()
    else:
        path.write_text(text)
        (found,) = runs_in([tmp_path])
        assert found["state"] == "unreadable" and str(path) in found["problem"]
    with pytest.warns(UserWarning, match=facts(str(path), "run.1.json")):
        run_tiny()
    assert record_in(path.parent).state == "ended"
    assert (path.parent / "run.1.json").exists()


def test_a_run_in_progress_and_folders_without_any(run_tiny, tmp_path):
    class Looks:
        found: dict[str, object]

        @hookimpl
        def on_step_end(self, trainer):
            (type(self).found,) = runs_in([trainer.run_dir])

    run_tiny(Looks)
    assert Looks.found["state"] == "running"
    (tmp_path / "nothing").mkdir()
    assert runs_in([tmp_path / "nothing"]) == []
    with pytest.raises(HooktrainError, match=facts("missing", "no folder")):
        runs_in([tmp_path / "missing"])


SLEEPS = """
from hooktrain import hookimpl

@hookimpl
def run_backward(trainer, loss):
    if trainer.global_step == 1:
        import time
        print("waits", flush=True)
        time.sleep(100)
    return NotImplemented
"""


def test_a_killed_run_says_where_it_was(tiny_recipe, tmp_path):
    (tmp_path / "extra.py").write_text(SLEEPS)
    recipe = {**tiny_recipe, "plugins": {"load": ["hooktrain.testing:TinyPlugin", "extra"]}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    words = [sys.executable, "-m", "hooktrain", "train", "r.yaml"]
    mine = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(words, cwd=tmp_path, env=mine, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line == "waits\n" for line in process.stdout)
        assert runs_in([tmp_path])[0]["state"] == "running", "its process holds the folder"
        watched = snapshots(tmp_path / "run", lambda: None)
        assert not next(watched).is_over
        process.send_signal(signal.SIGKILL)
    (found,) = runs_in([tmp_path])
    assert (found["state"], found["step"], found["hook"]) == ("ended without finishing", 1, "run_backward")
    last = next(watched)
    assert re.search(facts("ended without finishing", "step 1 of 7", "run_backward", "killed"), last.outcome())
    assert last.has_failed and not list(watched)


def test_a_run_directory_that_goes_away_is_an_error_at_the_next_write(run_tiny, tmp_path):
    class Moves:
        def __init__(self, replaced):
            self.replaced = replaced

        @hookimpl
        def on_step_end(self, trainer):
            if trainer.global_step == 2:
                trainer.run_dir.rename(tmp_path / f"moved-{self.replaced}")
                if self.replaced:
                    trainer.run_dir.mkdir()

    for replaced, what in ((False, "is gone"), (True, "replaced")):
        saves = {"type": "full", "save_every_n_steps": 1, "output_dir": str(tmp_path / f"saved-{replaced}")}
        with pytest.raises(HooktrainError, match=facts("run_dir", str(tmp_path / "run"), what)):
            run_tiny(Moves(replaced), checkpoint=saves)
        assert not (tmp_path / f"saved-{replaced}" / "step-00000003").exists()
        assert not any((tmp_path / "run").glob("*")), "nothing is written to the other folder"
        assert (tmp_path / f"moved-{replaced}" / "metrics.jsonl").exists()
        assert not (tmp_path / "run").exists() or not (tmp_path / "run").rmdir()
