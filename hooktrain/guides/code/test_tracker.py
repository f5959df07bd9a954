from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hooktrain import Trainer, hookimpl
from hooktrain.testing import Recorder, conformance

from tracker import Tracker

Run = Callable[..., Trainer]


def read(file: Path, command: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(file) as database:
        return list(database.execute(command))


def test_a_resumed_run_goes_on_in_the_same_tracked_run(
    run_tiny: Run, tmp_path: Path
) -> None:
    file, recorder = tmp_path / "runs.db", Recorder()
    settings = {
        "tracker": {"file": str(file)},
        "checkpoint": {"type": "full", "save_every_n_steps": 2},
    }
    first = run_tiny(Tracker(), train_iters=4, **settings)
    path = first.run_dir / "checkpoints" / "step-00000002"
    settings |= {
        "trainer": {"resume_from": path},
        "run_dir": str(tmp_path / "2"),
    }
    settings |= {"run_dir": str(tmp_path / "2"), "train_iters": 5}
    run_tiny(Tracker(), recorder, **settings)
    assert read(file, "SELECT * FROM runs") == [(first.run_id, "finished")]
    command = "SELECT step, value FROM metrics WHERE name = 'loss'"
    found = dict(read(file, command))
    assert sorted(found) == [1, 2, 3, 4, 5]
    assert found[5] == recorder.metrics[-1]["loss"]


def test_a_failed_run_ends_as_failed(run_tiny: Run, tmp_path: Path) -> None:
    class Fails:
        @hookimpl
        def on_step_end(self, trainer: Trainer) -> None:
            raise ArithmeticError("on purpose")

    file = tmp_path / "runs.db"
    with pytest.raises(ArithmeticError):
        run_tiny(Tracker(), Fails(), tracker={"file": str(file)})
    assert read(file, "SELECT status FROM runs") == [("failed",)]


def test_a_tracker_that_fails_ends_no_run(
    run_tiny: Run, tmp_path: Path
) -> None:
    settings = {"tracker": {"file": str(tmp_path / "no" / "runs.db")}}
    trainer = run_tiny(Tracker(), train_iters=2, **settings)
    assert trainer.global_step == 2
    assert any("unable to open" in text for text in trainer.host.warnings)


test_conformance = conformance(
    Tracker,
    settings={"tracker": {"file": ":memory:"}},
    checks=["hooks", "state", "observes", "teardown"],
)
