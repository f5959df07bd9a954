"""Retention, and saving while training continues."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shutil
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import hooktrain_torch.files
import hooktrain_torch.save
import pytest
import torch

from hooktrain import CheckpointError, RecipeError, hookimpl
from hooktrain.testing import Recorder
from tests.facts import facts
from tests.launching import stored_weights
from tests.preload import DEEPSPEED

pytestmark = pytest.mark.preload(*DEEPSPEED)


def saved(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (folder / "run" / "checkpoints").glob("step-*"))


def full(steps: int = 1, **more: Any) -> dict[str, Any]:
    return {"type": "full", "save_every_n_steps": steps, **more}


# ------------------------------------------------------------------------------------------------- what is kept


class Losses:
    """Gives the evaluation these losses, one after the other."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    @hookimpl
    def run_evaluate(self) -> dict[str, float]:
        return {"eval/held_out/loss": self.values.pop(0)}


def test_keep_every(run_tiny, tmp_path):
    run_tiny(epochs=2, checkpoint=full(keep_last=1, keep_every=4))
    assert saved(tmp_path) == [4, 8, 12, 14]


class Held:
    """Holds every deletion until two more steps are done, or the run has failed."""

    def __init__(self, monkeypatch) -> None:
        self.go, self.begun = threading.Event(), threading.Event()
        self.seen: list[list[str]] = []
        real = shutil.rmtree

        def rmtree(path, **more):
            self.begun.set()
            assert self.go.wait(60), "the training waits for the deletion"
            real(path, **more)

        monkeypatch.setattr("hooktrain_torch.retention.shutil.rmtree", rmtree)

    @hookimpl(tryfirst=True)
    def on_step_end(self, trainer) -> None:
        engine = trainer.checkpoint_engines[0]
        while engine._running is not None and not engine._running.has_ended:
            time.sleep(0.01)  # so that the next step finds the save done
        if self.begun.is_set() and not self.go.is_set():
            self.seen.append(sorted(path.name for path in engine.output_dir.iterdir()))
            if len(self.seen) == 2:
                self.go.set()

    @hookimpl(tryfirst=True)
    def on_exception(self) -> None:
        self.go.set()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_training_continues_while_older_checkpoints_are_deleted(run_tiny, tmp_path, monkeypatch, asynchronous):
    held = Held(monkeypatch)
    run_tiny(held, checkpoint=full(5, keep_last=1, asynchronous=asynchronous), epochs=2)
    assert held.seen == [[".removed-step-00000005", "step-00000010"]] * 2
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000010"]


def test_the_next_save_finishes_an_interrupted_deletion(run_tiny, tmp_path):
    left = tmp_path / "run" / "checkpoints" / ".removed-step-00000002"
    left.mkdir(parents=True)
    (left / "model-0.pt").write_bytes(b"x")
    run_tiny(checkpoint=full(7))
    assert saved(tmp_path) == [7] and not left.exists()


@pytest.mark.parametrize(("mode", "best"), [("min", 4), ("max", 2)])
def test_keep_best(run_tiny, tmp_path, mode, best):
    losses = Losses(5.0, 3.0, 4.0, 3.5)  # at steps 2, 4, 6, and 7, the last
    run_tiny(losses, eval_interval=2, checkpoint=full(keep_last=1, keep_best="eval/held_out/loss", keep_best_mode=mode))
    assert saved(tmp_path) == [best, 7]
    assert losses.values == []


@pytest.mark.parametrize(("mode", "steps"), [("min", [2, 4, 7]), ("max", [2, 6])])
def test_save_best_saves_after_each_better_evaluation(run_tiny, tmp_path, mode, steps):
    best = {"save_best": "eval/held_out/loss", "save_best_mode": mode}
    trainer = run_tiny(
        Losses(4.0, 3.0, 5.0, 2.5), eval_interval=2, checkpoint=full(0, **best)
    )  # at steps 2, 4, 6 and 7
    assert saved(tmp_path) == steps
    assert trainer.state.best == {f"{mode} eval/held_out/loss": 2.5 if mode == "min" else 5.0}


def test_what_save_best_saved_outlives_the_last_ones(run_tiny, tmp_path):
    best = full(2, keep_last=1, save_best="eval/held_out/loss")
    run_tiny(Losses(4.0, 3.0, 5.0, 3.5), eval_interval=2, checkpoint=best)
    assert saved(tmp_path) == [4, 6]


def test_a_resumed_run_knows_the_best_before_it(run_tiny, tmp_path):
    settings = {"eval_interval": 1, "checkpoint": full(0, save_best="eval/held_out/loss")}
    run_tiny(Losses(4.0, 3.0), train_iters=5, exit_iteration=2, **settings)
    path = tmp_path / "run" / "checkpoints" / "step-00000002"
    run_tiny(Losses(3.5, 2.0, 3.0), train_iters=5, trainer={"resume_from": path}, **settings)
    assert saved(tmp_path) == [1, 2, 4]


def test_a_best_of_what_no_evaluation_gives_is_an_error(run_tiny):
    with pytest.raises(Exception, match=facts("checkpoint[0].save_best", "'eval/held/loss'", "eval/held_out/loss")):
        run_tiny(eval_interval=1, checkpoint=full(0, save_best="eval/held/loss"))


def test_the_best_is_one_that_was_measured(run_tiny, tmp_path):
    """Step 5 still has the metrics of step 4, but they are not its own."""
    run_tiny(
        Losses(1.0, 2.0, 3.0),
        eval_interval=3,
        checkpoint=full(2, save_end_of_training=True, keep_last=1, keep_best="eval/held_out/loss"),
    )
    assert saved(tmp_path) == [6, 7]


def test_a_best_that_nobody_measures_is_said_once(run_tiny, tmp_path):
    with pytest.warns(UserWarning, match=facts("keep_best", "'eval/held/loss'", "eval_interval")) as caught:
        run_tiny(eval_interval=1, checkpoint=full(keep_last=1, keep_best="eval/held/loss"))
    said = [warning for warning in caught if "keep_best" in str(warning.message)]
    assert len(said) == 1
    assert "eval/held_out/loss" in str(said[0].message), "which there is"
    assert saved(tmp_path) == [7]


@pytest.mark.parametrize("name", ["keep_every", "keep_best"])
def test_settings_without_effect_are_refused(run_tiny, name):
    with pytest.raises(RecipeError, match=facts(f"checkpoint[0].{name}", "keep_last: 0", "keep_last: 1")):
        run_tiny(checkpoint=full(**{name: 2 if name == "keep_every" else "eval/held_out/loss"}))


# -------------------------------------------------------------------------------------------------- large files


class InTurn(ThreadPoolExecutor):
    """Real threads, but a call is over before the next begins: a slow disk would be sent larger parts, or a single one."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = super().submit(fn, *args, **kwargs)
        wait([future])
        return future


@pytest.fixture
def synced_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Files are sent to the disk every 64 KiB and hashed on another thread; how large they were each time."""
    sizes: list[int] = []
    monkeypatch.setattr(hooktrain_torch.files, "ThreadPoolExecutor", InTurn)
    sync = os.fsync
    monkeypatch.setattr(hooktrain_torch.files, "_LARGE", 1 << 12)
    monkeypatch.setattr(hooktrain_torch.files, "_SYNC_EVERY", 1 << 16)
    monkeypatch.setattr(os, "fsync", lambda handle: (sizes.append(os.fstat(handle).st_size), sync(handle))[1])
    return sizes


TENSORS = {str(at): torch.arange(at, at + 10_000) for at in range(20)}


def test_a_large_file_goes_to_the_disk_while_it_is_written(tmp_path, synced_sizes):
    facts = hooktrain_torch.files.write_object(TENSORS, tmp_path / "file.pt")
    written = (tmp_path / "file.pt").read_bytes()
    assert facts == {"bytes": len(written), "sha256": hashlib.sha256(written).hexdigest()}
    assert len(synced_sizes) > 2 and 1 << 16 <= synced_sizes[0] < synced_sizes[-1] == len(written)
    again = hooktrain_torch.files.read_object(tmp_path / "file.pt")
    assert all(torch.equal(again[name], value) for name, value in TENSORS.items())


def test_an_error_of_an_early_sync_is_not_lost(tmp_path, synced_sizes, monkeypatch):
    """A disk says to each open file only once that it could not write."""
    sync, calls = os.fsync, itertools.count()

    def once(handle: int) -> None:
        if next(calls) == 0:
            raise OSError(28, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", once)
    with pytest.raises(OSError, match="No space left on device"):
        hooktrain_torch.files.write_object(TENSORS, tmp_path / "file.pt")


# ---------------------------------------------------------------------------------------------- in the background


class Background:
    """Holds each save until the run is so many steps further, or at its end; says where the run was when it was done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: int, last: int) -> None:
        self.steps, self.last, self.emitted, self.reached = steps, last, list[tuple[int, int]](), 0.0
        self.changed = threading.Condition()
        original = hooktrain_torch.save.write_object

        def save(value: Any, path: Path) -> Any:
            step = int(path.parent.name[-8:])
            with self.changed:
                assert self.changed.wait_for(lambda: self.reached >= step + self.steps, 60), (
                    "the run waits for the save"
                )
            return original(value, path)

        monkeypatch.setattr(hooktrain_torch.save, "write_object", save)

    def reach(self, step: float) -> None:
        with self.changed:
            self.reached = max(self.reached, step)
            self.changed.notify_all()

    @hookimpl
    def on_step_start(self, trainer: Any) -> None:
        self.reach(trainer.global_step)

    @hookimpl(tryfirst=True)
    def on_step_end(self, trainer: Any) -> None:
        if trainer.global_step == self.last:
            self.reach(float("inf"))
        elif not self.emitted and self.reached >= 14 + self.steps:
            while not trainer.checkpoint_engines[0]._running.has_ended:
                time.sleep(0.01)  # so that the next step finds the save done

    @hookimpl
    def on_checkpoint_end(self, trainer: Any, path: Path) -> None:
        assert path.is_dir()
        self.emitted.append((int(path.name[5:]), trainer.global_step))

    @hookimpl
    def on_exception(self) -> None:
        self.reach(float("inf"))


def test_training_continues_and_a_checkpoint_is_of_its_own_step(run_tiny, tmp_path, monkeypatch):
    settings = {"epochs": 4, "model": {"dropout": 0.3}}
    run_tiny(**settings, checkpoint=full(14), run_dir=str(tmp_path / "plain"))
    look = Background(monkeypatch, 3, last=28)
    trainer = run_tiny(look, **settings, checkpoint=full(14, asynchronous=True))
    assert [step for step, _ in look.emitted] == [14, 28]
    assert 16 < look.emitted[0][1] < 28, "training continued meanwhile"
    assert look.emitted[1][1] == 28, "the run waits for its last save"
    for step in (14, 28):
        for kind in ("model", "optimizer"):
            plain, own = (
                stored_weights(tmp_path / name / "checkpoints" / f"step-{step:08d}", kind) for name in ("plain", "run")
            )
            assert plain.keys() == own.keys()
            assert all(torch.equal(plain[name], own[name]) for name in plain)
    assert trainer.checkpoint_engines[0].last_stall > 0


def test_a_save_begins_after_the_one_before(run_tiny, tmp_path, monkeypatch):
    look = Background(monkeypatch, 0, last=7)
    run_tiny(look, checkpoint=full(1, asynchronous=True))
    assert [step for step, _ in look.emitted] == [1, 2, 3, 4, 5, 6, 7] == saved(tmp_path)


class Broken:
    """The save at step 2 cannot be written."""

    @hookimpl
    def on_checkpoint_start(self, trainer: Any) -> None:
        self.broken = trainer.global_step == 2


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Broken:
    found, original = Broken(), hooktrain_torch.save.write_object

    def save(*arguments: Any) -> Any:
        if found.broken:
            raise OSError(28, "No space left on device")
        return original(*arguments)

    monkeypatch.setattr(hooktrain_torch.save, "write_object", save)
    return found


def test_a_save_that_fails_is_reported_and_the_run_continues(run_tiny, tmp_path, broken):
    with pytest.warns(UserWarning, match=r"step-00000002.*rank 0.*No space left.*output_dir.*\brun\b"):
        trainer = run_tiny(broken, checkpoint=full(2, asynchronous=True))
    assert trainer.global_step == 7
    assert saved(tmp_path) == [4, 6]


def test_a_save_that_fails_stops_the_run_when_asked_to(run_tiny, tmp_path, broken):
    with pytest.raises(CheckpointError, match=facts("step-00000002", "rank 0", "No space left", "output_dir")):
        run_tiny(broken, checkpoint=full(2, asynchronous=True, on_failure="stop"))
    assert saved(tmp_path) == []


def test_a_running_save_is_finished_when_the_run_fails(run_tiny, tmp_path, monkeypatch):
    class Fail:
        @hookimpl
        def on_step_start(self, trainer: Any) -> None:
            if trainer.global_step == 2:
                raise KeyError("out of luck")

    with pytest.raises(KeyError):
        run_tiny(Fail(), Background(monkeypatch, 100, last=7), checkpoint=full(2, asynchronous=True))
    assert saved(tmp_path) == [2]


RANKS = """
import threading
import hooktrain_torch.save
original = hooktrain_torch.save.write_object
reached, changed = [0], threading.Condition()

def save(value, path):
    step = int(path.parent.name[-8:])
    if os.environ["RANK"] == "1":  # the other rank is done long before
        with changed:
            assert changed.wait_for(lambda: reached[0] >= min(step + 3, 42), 60), "the training waits for the save"
        if step == 42:
            raise OSError(28, "No space left on device")
    return original(value, path)

hooktrain_torch.save.write_object = save

@hookimpl
def on_step_end(trainer):
    with changed:
        reached[0] = trainer.global_step
        changed.notify_all()

@hookimpl
def on_checkpoint_end(trainer, path):
    note(path=path.name, step=trainer.global_step, files=sorted(p.name for p in path.iterdir()))
"""


COMMITTED_LATE = """
import threading
import hooktrain_torch.save
original, go = hooktrain_torch.save.commit, threading.Event()

def commit(*arguments, **more):
    assert go.wait(60), "the training waits until the checkpoint is committed"
    return original(*arguments, **more)

hooktrain_torch.save.commit = commit

@hookimpl
def on_step_end(trainer):
    if trainer.global_step == 15:
        go.set()

@hookimpl
def on_checkpoint_end(trainer, path):
    note(path=path.name, later=trainer.global_step >= 15)
"""


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.thorough), 2])
def test_training_continues_while_a_checkpoint_is_committed(run_ranks, rank_notes, ranks):
    run = run_ranks(ranks, COMMITTED_LATE, epochs=6, checkpoint=full(10, asynchronous=True))
    assert run.status == 0, run.output
    first, second, *_ = rank_notes()
    assert first == {"path": "step-00000010", "later": True}
    assert second["path"] == "step-00000020"


@pytest.mark.parametrize(
    "strategy", [{"type": "torch"}, pytest.param({"type": "deepspeed", "zero_stage": 2}, marks=pytest.mark.thorough)]
)
def test_ranks_of_unequal_speed_end_a_save_at_the_same_step(run_ranks, rank_notes, strategy):
    """Rank 1 is slower, and cannot write step 42, the last one."""
    run = run_ranks(
        2,
        RANKS,
        micro_batch_size=1,
        epochs=6,
        strategy={**strategy, "dtype": "fp32", "device": "cpu"},
        checkpoint=full(10, save_end_of_training=True, asynchronous=True),
        plugins={"load": ["hooktrain.testing:TinyPlugin", "extra"]},
    )
    assert run.status == 1, run.output
    assert rank_notes(0) == rank_notes(1)
    emitted = [(line["path"], line["step"]) for line in rank_notes(0)]
    assert [path for path, _ in emitted] == ["step-00000010", "step-00000020", "step-00000030", "step-00000040"]
    assert emitted[0][1] > 10
    assert re.search("^hooktrain: rank 1: .*step 42.*step-00000042: .*rank 1.*No space left", run.output, re.MULTILINE)


def test_nothing_is_said_of_saves_that_are_not_in_the_background(run_tiny, tmp_path):
    said = []
    for background in (False, True):
        recorder = Recorder()
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            run_tiny(recorder, checkpoint=full(2, asynchronous=background), run_dir=str(tmp_path / f"run-{background}"))
        messages = [given["message"] for name, given in recorder.calls if name == "on_message"]
        said.append(sum("step-00000002" in message for message in messages))
    assert said == [1, 2], "that it is saved, and in the background how long that took"
