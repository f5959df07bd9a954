"""Signals and the stop file: real processes, signalled from outside, lose nothing and say why they ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hooktrain import hookimpl
from hooktrain.signals import exit_status
from hooktrain.testing.processes import NOTES
from tests.launching import stored_weights

SLOW = """
import time

@hookimpl
def on_microbatch_start(trainer):
    note(pid=os.getpid(), step=trainer.global_step)
    time.sleep(float(os.environ.get("NAP", "0.05")))

@hookimpl
def on_evaluate_start(trainer):
    note(evaluating=trainer.global_step)

@hookimpl(wrapper=True)
def compute_loss(trainer, model):
    if not model.training:
        time.sleep(0.2)
    return (yield)

@hookimpl
def on_checkpoint_end(trainer):
    note(saved=trainer.global_step)
"""


class Started:
    """A run in the background."""

    def __init__(self, folder: Path, ranks: int, changes: dict[str, Any], words: list[str]) -> None:
        self.folder = folder
        (folder / "extra.py").write_text(NOTES + SLOW)
        recipe = {
            "type": "tiny",
            "run_dir": str(folder / "run"),
            "micro_batch_size": 1,
            "epochs": 3,
            "strategy": {"dtype": "fp32", "device": "cpu"},
            "optimizer": {"type": "adamw", "lr": 0.01},
            "model": {"dropout": 0.3},
            "console": {"enabled": False},
            "checkpoint": {"type": "full", "save_end_of_training": True},
            "plugins": {"load": ["hooktrain.testing:TinyPlugin", "extra"]},
            **changes,
        }
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        command = [sys.executable, "-m", "hooktrain", "train", str(folder / "recipe.yaml"), *words]
        found = {"PYTHONPATH": str(folder), "NOTES": str(folder / "notes"), "OMP_NUM_THREADS": "1"}
        environment = {**os.environ, **found}
        if ranks == 1:
            environment["RANK"] = "0"
        else:
            command += ["--nproc", str(ranks)]
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def notes(self, rank: int = 0) -> list[dict[str, Any]]:
        path = self.folder / f"notes.{rank}"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def wait_for(self, rank: int = 0, **fact: Any) -> int:
        """Wait until a rank has noted something; returns its process id."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            found = self.notes(rank)
            if any(fact.items() <= line.items() for line in found):
                return int(next(line["pid"] for line in found if "pid" in line))
            assert self.process.poll() is None, self.process.communicate()[0]
            time.sleep(0.01)
        raise AssertionError(f"rank {rank} never noted {fact}")

    def end(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=60)
        return self.process.returncode, output

    @property
    def saved(self) -> list[int]:
        folder = self.folder / "run" / "checkpoints"
        return sorted(int(path.name[5:]) for path in folder.glob("step-*")) if folder.exists() else []


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Started]:
    def begin(name: str, ranks: int = 1, words: list[str] | None = None, **changes: Any) -> Started:
        (tmp_path / name).mkdir(exist_ok=True)
        return Started(tmp_path / name, ranks, changes, words or [])

    return begin


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_ends_and_a_resume_repeats_the_undisturbed_run(start, name):
    run = start("run")
    os.kill(run.wait_for(step=4), getattr(signal, name))
    code, output = run.end()
    assert code == 128 + getattr(signal, name), output
    assert f"hooktrain: {name}: will save and end after this step" in output
    (step,) = run.saved
    assert 4 < step < 10
    state = json.loads((run.folder / f"run/checkpoints/step-{step:08d}/state.json").read_text())
    assert state["stop_reason"] == f"{name}, received by rank 0"
    assert not any("evaluating" in line for line in run.notes()), "nothing that takes long is begun"

    rest = start("run", words=["--resume", str(run.folder / f"run/checkpoints/step-{step:08d}")])
    assert rest.end()[0] == 0
    whole = start("whole")
    assert whole.end()[0] == 0
    paths = [each.folder / "run/checkpoints/step-00000039" for each in (rest, whole)]
    one, two = map(stored_weights, paths)
    assert all(one[key].equal(two[key]) for key in two)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_ends_all_at_the_same_step(start, rank):
    run = start("run", ranks=2)
    os.kill(run.wait_for(rank, step=4), signal.SIGTERM)
    code, output = run.end()
    assert code != 0
    (step,) = run.saved
    assert [line for line in run.notes(0) if "saved" in line] == [line for line in run.notes(1) if "saved" in line]
    state = json.loads((run.folder / f"run/checkpoints/step-{step:08d}/state.json").read_text())
    assert state["stop_reason"] == f"SIGTERM, received by rank {rank}", output


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_during_an_evaluation_leaves_it_out_and_it_is_made_up_for(start, ranks):
    run = start("run", ranks=ranks, eval_interval=3, data={"eval_rows": 600}, eval_micro_batch_size=1)
    os.kill(run.wait_for(ranks - 1, evaluating=3), signal.SIGTERM)
    began = time.monotonic()
    code, output = run.end()
    assert code != 0
    assert time.monotonic() - began < 40, "600 rows would take 120 seconds, or 60 on two ranks"
    assert run.saved == [3], output
    assert [line["step"] for line in map(json.loads, (run.folder / "run/metrics.jsonl").open())] == [1, 2, 3]
    words = [
        "--resume",
        str(run.folder / "run/checkpoints/step-00000003"),
        "-o",
        "train_iters=4",
        "-o",
        "eval_interval=0",
        "-o",
        "allow_drift=[global_batch_size]",
    ]
    rest = start("run", words=words, data={"eval_rows": 2}, epochs=None, train_iters=4)
    code, output = rest.end()
    assert code == 0, output
    lines = [json.loads(line) for line in (run.folder / "run/metrics.jsonl").open()]
    assert "eval/held_out/loss" in next(line for line in lines[3:] if line["step"] == 3)


def test_sigusr1_saves_and_goes_on(start):
    run = start("run", epochs=1)
    os.kill(run.wait_for(step=4), signal.SIGUSR1)
    code, output = run.end()
    assert code == 0, output
    assert len(run.saved) == 2 and 4 < run.saved[0] < 10 and run.saved[1] == 13


def test_the_file_stop_ends_the_run(start):
    run = start("run")
    run.wait_for(step=2)
    (run.folder / "run" / "stop").touch()
    code, output = run.end()
    assert code == 0, output
    (step,) = run.saved
    assert 2 < step < 10
    assert not (run.folder / "run" / "stop").exists()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_run_after_the_step_with_a_save_and_its_own_status(run_tiny, tmp_path, name):
    number = getattr(signal, name)
    before = signal.getsignal(number)

    class Send:
        @hookimpl
        def on_step_start(self, trainer):
            if trainer.global_step == 2:
                signal.raise_signal(number)

    saves = {"type": "full", "save_every_n_steps": 100}
    trainer = run_tiny(Send(), checkpoint=saves)
    assert (trainer.global_step, trainer.state.stop_reason) == (3, f"{name}, received by rank 0")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]
    assert exit_status(trainer.state.stop_reason) == 128 + number
    assert exit_status(None) == exit_status("enough is enough") == 0
    assert signal.getsignal(number) is before
    path = tmp_path / "run" / "checkpoints" / "step-00000003"
    again = run_tiny(checkpoint=saves, trainer={"resume_from": path})
    assert (again.global_step, again.state.stop_reason) == (7, None), "what ended that run does not end this one"


def test_a_file_stop_that_comes_too_late_does_not_end_the_next_run(run_tiny, tmp_path):
    class Late:
        @hookimpl
        def on_step_end(self, trainer):
            if trainer.global_step == 2:
                (trainer.run_dir / "stop").touch()

    trainer = run_tiny(Late(), train_iters=2)
    assert trainer.global_step == 2
    assert not (tmp_path / "run" / "stop").exists()


def test_a_second_sigint_ends_at_once(start, monkeypatch):
    """While a step takes long; what comes within a second is the first one, passed on by a launcher."""
    run = start("run", gradient_accumulation_steps=13, data={"rows": 500})
    pid = run.wait_for(step=0)
    os.kill(pid, signal.SIGINT)
    time.sleep(0.1)
    os.kill(pid, signal.SIGINT)
    code, output = run.end()
    assert (code, run.saved) == (130, [1]), output
    monkeypatch.setenv("NAP", "6")  # so that both signals find it in the hook, however busy the machine is
    again = start("again", gradient_accumulation_steps=50, data={"rows": 50})
    pid = again.wait_for(step=0)
    os.kill(pid, signal.SIGINT)
    time.sleep(1.5)
    os.kill(pid, signal.SIGINT)
    before = len(again.notes())
    code, output = again.end()
    assert (code, again.saved) == (130, []), output
    assert len(again.notes()) <= before + 1, "no micro-batch is begun any more, of those that would take 300 seconds"
    assert (
        "interrupted at plugin 'extra', hook on_microbatch_start, step 0, rank 0; this run has saved nothing" in output
    )


LAST = """
import signal

@hookimpl{how}
def {hook}(trainer):
    if trainer.global_step == 3 and trainer.world.is_main:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGINT)
"""


def test_what_is_said_of_saves_when_a_run_is_interrupted(run_ranks):
    saves = {"type": "full", "save_every_n_steps": 1}
    run = run_ranks(1, LAST.format(hook="on_step_end", how=""), checkpoint=saves)
    assert run.status == 130
    last = run.folder / "checkpoints" / "step-00000002"
    assert f"interrupted at plugin 'extra', hook on_step_end, step 3, rank 0; the last save is {last}\n" in run.output
    run = run_ranks(1, LAST.format(hook="on_teardown", how="(trylast=True)"), checkpoint=saves, exit_iteration=3)
    assert run.status == 130
    assert (run.folder / "checkpoints" / "step-00000003").exists()
    assert run.output.splitlines()[-1] == "hooktrain: interrupted", "the run had ended, and has said what it saved"


def test_what_is_saved_at_the_end_anyway_is_saved_once(run_tiny, tmp_path):
    """Whoever stops a run from outside waits a limited time for it, and an export of the same weights takes as long again."""
    saves = []

    class Stop:
        @hookimpl
        def on_step_end(self, trainer):
            if trainer.global_step == 2:
                trainer.request_save()
                trainer.request_stop("enough")

        @hookimpl(wrapper=True)
        def save_checkpoint(self, trainer):
            saves.append(
                (trainer.checkpoint_reason, [e.config.output_dir.name for e in trainer.due_checkpoint_engines])
            )
            return (yield)

    folders = [
        {"type": "full", "output_dir": str(tmp_path / "end"), "save_end_of_training": True},
        {"type": "full", "output_dir": str(tmp_path / "steps"), "save_every_n_steps": 100},
    ]
    run_tiny(Stop(), checkpoint=folders)
    assert saves == [("request", ["steps"]), ("end", ["end"])]
