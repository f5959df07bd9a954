"""One run at a time in a run directory, and none is kept waiting by a run that is gone."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from hooktrain import HooktrainError
from hooktrain.training.run_lock import RunLock
from tests.facts import facts

HOLDER = """
import sys
from pathlib import Path
from hooktrain.training.run_lock import RunLock
held = RunLock(Path(sys.argv[1]), patience=0)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    words = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_and_told_who_is_there(holder, tmp_path):
    told: list[str] = []
    with pytest.raises(HooktrainError, match=facts(str(tmp_path), f"process {holder.pid} on ", "run_dir")):
        RunLock(tmp_path, patience=0.3, say=told.append)
    assert len(told) == 1 and f"process {holder.pid}" in told[0] and "wait" in told[0]


def test_a_run_that_is_killed_leaves_nothing_to_wait_for(holder, tmp_path):
    holder.kill()
    holder.wait()
    RunLock(tmp_path, patience=0).release()


FORKS = """
import os, sys
from pathlib import Path
from hooktrain.training.run_lock import RunLock
held = RunLock(Path(sys.argv[1]), patience=0)
child = os.fork()
if child == 0:
    sys.stdin.read()
    os._exit(0)
print(child, flush=True)
os._exit(0)
"""


def test_a_forked_child_that_outlives_the_holder_does_not_hold_the_folder(tmp_path):
    words = [sys.executable, "-c", FORKS, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.wait()
        os.kill(child, 0)  # raises where it has ended
        RunLock(tmp_path, patience=0).release()


def test_a_process_may_hold_its_folder_twice(tmp_path):
    first, second = RunLock(tmp_path, patience=0), RunLock(tmp_path, patience=0)
    first.release()
    words = [sys.executable, "-c", HOLDER, str(tmp_path)]
    given = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    assert "is in use" in subprocess.run(words, check=False, **given).stderr, "the second one holds it"
    second.release()
    assert subprocess.run(words, check=False, **given).stdout == "held\n"


def test_a_run_holds_its_folder_as_long_as_its_trainer_lives(holder, run_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("hooktrain.training.run_lock._PATIENCE", 0.2)
    used = facts(str(tmp_path), f"process {holder.pid}")
    with pytest.raises(HooktrainError, match=used), pytest.warns(UserWarning, match=used):
        run_tiny(run_dir=str(tmp_path))
    trainer = run_tiny(run_dir=str(tmp_path / "other"))
    take = [sys.executable, "-c", HOLDER, str(trainer.run_dir)]
    given = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    refused = subprocess.run(take, check=False, **given).stderr.splitlines()[-1]
    assert re.search(facts(str(trainer.run_dir), f"process {os.getpid()} on ", "run_dir"), refused)
    del trainer
    assert subprocess.run(take, check=False, **given).stdout == "held\n"
