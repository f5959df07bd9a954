"""One run at a time in a run directory, and none is kept waiting by a run that is gone."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from hooktrain import HooktrainError
from hooktrain.occupied import Occupation

HOLDER = """
import sys, time
from pathlib import Path
from hooktrain.occupied import Occupation
held = Occupation(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_refused_and_told_who_is_there(holder, tmp_path):
    told: list[str] = []
    with pytest.raises(HooktrainError, match=rf"is in use by another run \(process {holder.pid} on .*another run_dir"):
        Occupation(tmp_path, patience=0.3, say=told.append)
    assert len(told) == 1 and "waiting up to" in told[0]


def test_a_run_that_is_killed_leaves_nothing_to_wait_for(holder, tmp_path):
    holder.kill()
    holder.wait()
    began = time.monotonic()
    Occupation(tmp_path).release()
    assert time.monotonic() - began < 5


def test_a_run_holds_its_folder_as_long_as_its_trainer_lives(holder, run_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("hooktrain.occupied._PATIENCE", 0.2)
    with pytest.raises(HooktrainError, match="in use by another run"), pytest.warns(UserWarning, match="waiting"):
        run_tiny(run_dir=str(tmp_path))
    trainer = run_tiny(run_dir=str(tmp_path / "other"))
    take = [sys.executable, "-c", HOLDER.replace("(sys.argv[1])", "(sys.argv[1]), patience=0").replace("60", "0")]
    given = [*take, str(trainer.run_dir)]
    assert "in use" in subprocess.run(given, check=False, capture_output=True, text=True).stderr
    del trainer
    assert subprocess.run(given, check=False, capture_output=True, text=True).stdout == "held\n"
