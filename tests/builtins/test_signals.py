"""Signals and the stop file: real processes, signalled from outside, lose nothing and say why they ended."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import hooktrain.builtins.signals
from hooktrain import PluginInfo, hookimpl
from hooktrain.testing.subprocess_runs import NOTES
from tests.facts import facts
from tests.launching import stored_weights

HELD = """
import time

FOLDER = Path(os.environ["NOTES"]).parent

def hold(where):
    note(at=where, pid=os.getpid())
    while where == os.environ.get("HOLD") and not (FOLDER / "go").exists():
        time.sleep(0.005)

@hookimpl
def on_microbatch_start(trainer):
    hold(f"step {trainer.global_step}")

@hookimpl
def on_evaluate_start(trainer):
    note(at=f"evaluation {trainer.global_step}")

@hookimpl(wrapper=True)
def compute_loss(trainer, model):
    if not model.training:
        hold("evaluated batch")
    return (yield)

@hookimpl
def on_checkpoint_end(trainer):
    note(at=f"save {trainer.global_step}")
"""
"""A plugin that waits at the place that ``HOLD`` names until there is a file ``go``, so that a signal meets it there."""


class Clock:
    """Takes the place of ``time`` and stands still."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of ``hooktrain.builtins.signals``, which the test moves."""
    made = Clock()
    monkeypatch.setattr(hooktrain.builtins.signals, "time", made)
    return made


class Started:
    """A run in the background, which waits at a place."""

    def __init__(self, folder: Path, ranks: int, hold: str, words: list[str], changes: dict[str, Any]) -> None:
        self.folder = folder
        (folder / "go").unlink(missing_ok=True)
        (folder / "extra.py").write_text(NOTES + HELD)
        recipe = {
            "type": "tiny",
            "run_dir": str(folder / "run"),
            "micro_batch_size": 1,
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
        found = {"PYTHONPATH": str(folder), "NOTES": str(folder / "notes"), "OMP_NUM_THREADS": "1", "HOLD": hold}
        environment = {**os.environ, **found}
        if ranks == 1:
            environment["RANK"] = "0"
        else:
            command += ["--nproc", str(ranks)]
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def notes(self, rank: int = 0) -> list[str]:
        """The places where a rank has been."""
        return [line["at"] for line in self._lines(rank)]

    def _lines(self, rank: int) -> list[dict[str, Any]]:
        path = self.folder / f"notes.{rank}"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def send(self, name: str, *, at: str, rank: int = 0) -> None:
        """Send a signal to a rank that waits at a place."""
        until = time.monotonic() + 60
        while at not in self.notes(rank):
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < until, f"rank {rank} has not come to {at}"
            time.sleep(0.005)
        os.kill(next(line["pid"] for line in self._lines(rank) if "pid" in line), getattr(signal, name))

    def end(self) -> tuple[int, str]:
        """Let it continue, and wait for its end; returns the status and what it printed."""
        (self.folder / "go").touch()
        output, _ = self.process.communicate(timeout=60)
        return self.process.returncode, output

    @property
    def saved(self) -> list[int]:
        """The steps of its checkpoints."""
        folder = self.folder / "run" / "checkpoints"
        return sorted(int(path.name[5:]) for path in folder.glob("step-*")) if folder.exists() else []


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Started]:
    """``start("name", hold="step 4", ranks=2, words=[...], key=value)``: begin a run that waits at a place."""

    def begin(name: str, *, ranks: int = 1, hold: str = "", words: list[str] | None = None, **changes: Any) -> Started:
        (tmp_path / name).mkdir(exist_ok=True)
        return Started(tmp_path / name, ranks, hold, words or [], changes)

    return begin


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.thorough)])
def test_a_signal_saves_ends_and_a_resume_repeats_the_undisturbed_run(start, name):
    run = start("run", hold="step 4")
    run.send(name, at="step 4")
    code, output = run.end()
    assert code == 128 + getattr(signal, name), output
    (said,) = [line for line in output.splitlines() if line.startswith(f"hooktrain: {name}: ")]
    assert "save" in said and "step" in said
    assert run.saved == [5]
    state = json.loads((run.folder / "run/checkpoints/step-00000005/state.json").read_text())
    assert re.search(facts(name, "rank 0"), state["stop_reason"])
    assert not any("evaluation" in place for place in run.notes()), "nothing that takes long is begun"

    rest = start("run", words=["--resume", str(run.folder / "run/checkpoints/step-00000005")])
    whole = start("whole")
    assert rest.end()[0] == whole.end()[0] == 0
    paths = [each.folder / "run/checkpoints/step-00000013" for each in (rest, whole)]
    one, two = map(stored_weights, paths)
    assert all(one[key].equal(two[key]) for key in two)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.thorough), 1])
def test_a_signal_to_one_rank_ends_all_at_the_same_step(start, rank):
    run = start("run", ranks=2, hold="step 4")
    run.send("SIGTERM", at="step 4", rank=rank)
    code, output = run.end()
    assert code != 0
    assert run.saved == [5]
    assert all("save 5" in run.notes(each) and "step 5" not in run.notes(each) for each in (0, 1))
    state = json.loads((run.folder / "run/checkpoints/step-00000005/state.json").read_text())
    assert re.search(facts("SIGTERM", f"rank {rank}"), state["stop_reason"]), output


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.thorough), 2])
def test_a_signal_during_an_evaluation_leaves_it_out_and_it_is_made_up_for(start, ranks):
    """Of 600 rows one is evaluated on each rank."""
    evaluates = {"eval_interval": 3, "data": {"eval_rows": 600}, "eval_micro_batch_size": 1}
    run = start("run", ranks=ranks, hold="evaluated batch", **evaluates)
    run.send("SIGTERM", at="evaluated batch", rank=ranks - 1)
    code, output = run.end()
    assert code != 0
    assert run.saved == [3], output
    assert all(run.notes(rank).count("evaluated batch") == 1 for rank in range(ranks))
    assert [line["step"] for line in map(json.loads, (run.folder / "run/metrics.jsonl").open())] == [1, 2, 3]
    words = [
        "--resume",
        str(run.folder / "run/checkpoints/step-00000003"),
        "-o",
        "train_iters=4",
        "-o",
        "eval_interval=0",
        "-o",
        "allow_changes=[global_batch_size]",
    ]
    rest = start("run", words=words, data={"eval_rows": 2}, epochs=None, train_iters=4)
    code, output = rest.end()
    assert code == 0, output
    lines = [json.loads(line) for line in (run.folder / "run/metrics.jsonl").open()]
    (line,) = (line for line in lines if line["step"] == 3)
    assert "eval/held_out/loss" in line and "loss" in line


def test_sigusr1_saves_and_goes_on(start):
    run = start("run", hold="step 4")
    run.send("SIGUSR1", at="step 4")
    code, output = run.end()
    assert code == 0, output
    assert run.saved == [5, 13]


def test_the_file_stop_ends_the_run(run_tiny, tmp_path, clock):
    class Touch:
        @hookimpl
        def on_step_start(self, trainer):
            clock.now += 1.0  # the file is looked for ten times a second at most
            if trainer.global_step == 2:
                (trainer.run_dir / "stop").touch()

    trainer = run_tiny(Touch(), checkpoint={"type": "full", "save_every_n_steps": 100})
    assert trainer.global_step == 3
    assert re.search(facts("'stop'", "run directory"), trainer.state.stop_reason)
    assert trainer.exit_status == 0
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]
    assert not (tmp_path / "run" / "stop").exists()


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
    assert trainer.global_step == 3
    assert re.search(facts(name, "rank 0"), trainer.state.stop_reason)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]
    assert trainer.exit_status == 128 + number
    assert signal.getsignal(number) is before
    path = tmp_path / "run" / "checkpoints" / "step-00000003"
    again = run_tiny(checkpoint=saves, trainer={"resume_from": path})
    assert (again.global_step, again.state.stop_reason) == (7, None), "what ended that run does not end this one"


def test_a_folder_called_stop_is_moved_aside_and_ends_nothing(run_tiny, tmp_path, clock):
    class Makes:
        @hookimpl
        def on_step_start(self, trainer):
            clock.now += 1
            if trainer.global_step in (2, 4):
                (trainer.run_dir / "stop").mkdir()

    with pytest.warns(UserWarning, match=facts(str(tmp_path / "run" / "stop"), "folder", "stop.1")):
        trainer = run_tiny(Makes())
    assert (trainer.global_step, trainer.state.stop_reason) == (7, None)
    assert (tmp_path / "run" / "stop.1").is_dir() and (tmp_path / "run" / "stop.2").is_dir()


def test_a_link_called_stop_that_leads_nowhere_is_a_file(run_tiny, tmp_path, clock):
    class Links:
        @hookimpl
        def on_step_start(self, trainer):
            clock.now += 1
            if trainer.global_step == 2:
                (trainer.run_dir / "stop").symlink_to("nowhere")

    assert run_tiny(Links()).global_step == 3
    assert not (tmp_path / "run" / "stop").is_symlink()


def test_a_file_stop_that_comes_too_late_does_not_end_the_next_run(run_tiny, tmp_path):
    class Late:
        @hookimpl
        def on_step_end(self, trainer):
            if trainer.global_step == 2:
                (trainer.run_dir / "stop").touch()

    trainer = run_tiny(Late(), train_iters=2)
    assert trainer.global_step == 2
    assert not (tmp_path / "run" / "stop").exists()


@pytest.mark.thorough
def test_a_second_sigint_ends_at_once(start):
    run = start("run", hold="step 0", gradient_accumulation_steps=13)
    run.send("SIGINT", at="step 0")
    time.sleep(1.5)  # what comes within a second is the first one, passed on by a launcher
    run.send("SIGINT", at="step 0")
    output, _ = run.process.communicate(timeout=60)
    code = run.process.returncode
    assert (code, run.saved) == (130, []), output
    assert run.notes() == ["step 0"], "no micro-batch is begun any more"
    named = ("plugin 'extra'", "on_microbatch_start", "step 0", "rank 0", "saved nothing")
    (last,) = [line for line in output.splitlines() if line.startswith("hooktrain: interrupted")]
    assert re.search(facts(*named), last)


@pytest.mark.parametrize(("seconds", "ends"), [(0.5, False), (1.5, True)])
def test_a_second_sigint_is_another_one_after_a_second(run_tiny, tmp_path, clock, seconds, ends):
    """Within a second it is the first one again, which a launcher has passed on."""

    class Send:
        @hookimpl
        def on_microbatch_start(self, trainer):
            if trainer.global_step == 2:
                signal.raise_signal(signal.SIGINT)
                clock.now += seconds
                signal.raise_signal(signal.SIGINT)

    saves = {"type": "full", "save_every_n_steps": 100}
    if ends:
        with pytest.raises(KeyboardInterrupt):
            run_tiny(Send(), checkpoint=saves)
        assert not list((tmp_path / "run").glob("checkpoints/step-*"))
    else:
        assert re.search(facts("SIGINT", "rank 0"), run_tiny(Send(), checkpoint=saves).state.stop_reason)
        assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]


LAST = """
import signal

@hookimpl{how}
def {hook}(trainer):
    if trainer.global_step == 3 and trainer.world.is_main:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGINT)
"""


def test_what_is_said_of_saves_when_a_run_is_interrupted(run_ranks):
    saves: dict[str, Any] = {"type": "full", "save_every_n_steps": 1}
    run = run_ranks(1, LAST.format(hook="on_step_end", how=""), checkpoint=saves)
    assert run.status == 130
    last = run.folder / "checkpoints" / "step-00000002"
    (said,) = [line for line in run.output.splitlines() if line.startswith("hooktrain: interrupted")]
    assert re.search(facts("plugin 'extra'", "on_step_end", "step 3", "rank 0", str(last)), said)
    saves["output_dir"] = str(run.folder / "second")
    run = run_ranks(1, LAST.format(hook="on_teardown", how="(trylast=True)"), checkpoint=saves, exit_iteration=3)
    assert run.status == 130
    assert (run.folder / "second" / "step-00000003").exists()
    assert run.output.splitlines()[-1] == "hooktrain: interrupted", "the run had ended, and has said what it saved"


WRITING = """
import signal
import hooktrain
from hooktrain_torch import files

hooktrain_plugin = hooktrain.PluginInfo(may_change=["signal handlers"])
write = files._SyncedStream.write

def interrupted(stream, data):
    if stream.bytes:  # within the archive that torch has begun
        os.kill(os.getpid(), signal.SIGINT)
    return write(stream, data)

@hookimpl
def on_checkpoint_start(trainer):
    if trainer.world.is_main:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        files._SyncedStream.write = interrupted

"""


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_an_interrupt_in_the_middle_of_a_save_is_one(run_ranks, ranks):
    """torch ends its archive when a write fails, and that failure hides the interrupt."""
    saves = {"type": "full", "save_every_n_steps": 1}
    run = run_ranks(ranks, WRITING, checkpoint=saves)
    assert run.status == 130, run.output
    assert "Traceback" not in run.output
    (said,) = [line for line in run.output.splitlines() if line.startswith("hooktrain: interrupted")]
    assert re.search(facts("step 1", "saved nothing"), said)


def test_an_interrupt_that_a_library_hides_is_one(run_ranks):
    """As one that waits for processes of its own does, and reports that they have ended."""
    hides = """
@hookimpl
def on_step_start(trainer):
    try:
        raise KeyboardInterrupt
    finally:
        raise RuntimeError("DataLoader worker exited")
"""
    run = run_ranks(1, hides)
    assert run.status == 130, run.output
    assert "Traceback" not in run.output


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


def test_a_hang_up_saves_and_ends_as_sigterm_does(start):
    run = start("run", hold="step 4")
    run.send("SIGHUP", at="step 4")
    code, output = run.end()
    assert code == 128 + signal.SIGHUP, output
    assert run.saved == [5]


@pytest.mark.usefixtures("real_starts")
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_under_nohup_a_hang_up_ends_nothing(start, ranks):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which the process and its ranks inherit, as from nohup
    try:
        run = start("run", ranks=ranks, hold="step 4")
    finally:
        signal.signal(signal.SIGHUP, before)
    run.send("SIGHUP", at="step 4")
    if ranks > 1:
        run.process.send_signal(signal.SIGHUP)
    code, output = run.end()
    assert (code, run.saved) == (0, [13 if ranks == 1 else 7]), output


class TakesOver:
    """Does with a signal what a plugin or a library does that was written for programs of its own."""

    def __init__(self, number, handler, hook):
        def take(self, trainer):
            if not self.done:
                self.done = True
                handler(number, trainer)

        info = PluginInfo(may_change=["signal handlers"])
        members = {"done": False, "hooktrain_plugin": info, hook: hookimpl(take)}
        self.plugin = type("TakesOver", (), members)()


def own_handler(called):
    def set_handler(number, trainer):
        signal.signal(number, lambda *given: called.append(number))

    return set_handler


def chained(called):
    def set_handler(number, trainer):
        before = signal.signal(number, lambda *given: (called.append(number), before(*given)))

    return set_handler


def exits(called):
    def set_handler(number, trainer):
        signal.signal(number, lambda *given: (called.append(number), sys.exit(0)))

    return set_handler


TAKEN = {
    "a handler": (own_handler, 1),
    "one that calls ours": (chained, 1),
    "one that exits": (exits, 1),
    "ignored": (lambda called: lambda number, trainer: signal.signal(number, signal.SIG_IGN), 0),
    "blocked": (lambda called: lambda number, trainer: signal.pthread_sigmask(signal.SIG_BLOCK, {number}), 0),
}


@pytest.mark.filterwarnings("ignore::hooktrain.HooktrainWarning")
@pytest.mark.parametrize("hook", ["on_train_start", "on_step_start"])
@pytest.mark.parametrize("how", TAKEN)
def test_a_plugin_that_takes_sigterm_over_is_named_and_the_run_saves(run_tiny, tmp_path, clock, how, hook):
    called, (take, calls) = [], TAKEN[how]

    class Send:
        @hookimpl
        def on_step_start(self, trainer):
            clock.now += 1.0  # a mask is looked for ten times a second at most
            if trainer.global_step == 2:
                signal.raise_signal(signal.SIGTERM)

    plugin = TakesOver(signal.SIGTERM, take(called), hook).plugin
    trainer = run_tiny(plugin, Send(), checkpoint={"type": "full", "save_every_n_steps": 100})
    assert trainer.global_step == 3 and trainer.exit_status == 128 + signal.SIGTERM
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]
    assert len(called) == calls
    (warned,) = [text for text in trainer.host.warnings if text.startswith("SIGTERM") and "before step" in text]
    assert re.search(facts("rank 0"), warned)
    if calls:
        assert "plugin 'TakesOver'" in warned
