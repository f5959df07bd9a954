"""Runs that are killed again and again, at any time, end with the weights of a run that was never disturbed.

In the default tier a few, each when so many micro-batches have begun. In the thorough one many, at any time at all:
``pytest -m thorough tests/training/test_soak.py``.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hooktrain_torch import problem_of
from safetensors.torch import load_file

from benchmarks import soak
from tests.environments import write_recipe
from tests.launching import stored_weights

SAYS = """
import os, time
from hooktrain import hookimpl

PIPE = open(os.environ["MICROBATCHES"], "w", buffering=1)

@hookimpl
def on_microbatch_start(trainer):
    print(trainer.world.rank, os.getpid(), file=PIPE)
    time.sleep(0.02)
"""
"""A plugin that says which rank begins a micro-batch, in which process."""
TINY = {
    "type": "tiny",
    "micro_batch_size": 1,
    "epochs": 6,
    "strategy": {"dtype": "fp32", "device": "cpu", "timeout": 20},
    "optimizer": {"type": "adamw", "lr": 0.01},
    "model": {"dropout": 0.3},
}
FULL = {"type": "full", "save_every_n_steps": 2, "save_end_of_training": True, "auto_resume": True, "keep_last": 2}
ZERO = {"type": "deepspeed", "zero_stage": 3, "dtype": "fp32", "device": "cpu", "timeout": 20}
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "one rank": (1, {**TINY, "checkpoint": [FULL]}),
    "one rank, in the background": (1, {**TINY, "checkpoint": [{**FULL, "asynchronous": True}]}),
    "two ranks, in the background": (2, {**TINY, "checkpoint": [{**FULL, "asynchronous": True}]}),
    "two ranks, ZeRO-3": (2, {**TINY, "strategy": ZERO, "checkpoint": [FULL]}),
}


class Soak:
    """Starts a run again after each kill.

    Args:
        folder: where everything is kept.
        ranks: processes of the run.
        settings: the recipe.
        kills: how often the run is killed.
        at_any_time: kill up to a second after the first step has begun; else when a third to a half of the whole run's
            micro-batches have, so that there is a checkpoint to resume from.
    """

    def __init__(self, folder: Path, ranks: int, settings: dict[str, Any], kills: int, at_any_time: bool) -> None:
        self.folder, self.ranks, self.settings, self.kills = folder, ranks, settings, kills
        self.at_any_time, self.random = at_any_time, random.Random(kills)
        self.last = ""
        folder.mkdir()
        (folder / "extra.py").write_text(SAYS)
        os.mkfifo(folder / "pipe")

    def start(self, run_dir: str) -> subprocess.Popen[str]:
        load = ["hooktrain.testing:TinyPlugin", "extra"]
        changes = {"run_dir": str(self.folder / run_dir), "console": {"enabled": False}, "plugins": {"load": load}}
        path = write_recipe(self.folder / f"{run_dir}.yaml", {**self.settings, **changes})
        mine = {"PYTHONPATH": str(self.folder), "MICROBATCHES": str(self.folder / "pipe"), "OMP_NUM_THREADS": "1"}
        words = ["--nproc", str(self.ranks)] if self.ranks > 1 else []
        return subprocess.Popen(
            [sys.executable, "-m", "hooktrain", "train", str(path), *words],
            env={**os.environ, **mine, **({"RANK": "0"} if self.ranks == 1 else {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, run_dir: str) -> int:
        """Run to the end; returns how many micro-batches that took."""
        with self.started(run_dir) as (process, microbatches):
            count = sum(1 for _ in microbatches)
            output, _ = process.communicate()
        assert process.returncode == 0, output
        return count

    def kill_one(self, whole: int) -> bool:
        """Start, and kill one of the processes, or all; returns whether it was still running."""
        pids: dict[int, int] = {}
        with self.started("run") as (process, microbatches):
            for rank, pid in microbatches:
                pids[rank] = pid
                if len(pids) == self.ranks:
                    break
            if self.at_any_time:
                time.sleep(self.random.uniform(0.0, 1.0))
            else:
                for _ in zip(range(self.random.randint(whole // 3, whole // 2)), microbatches, strict=False):
                    pass
            victims = self.random.choice(
                [[pid] for pid in (*pids.values(), process.pid)] + [[*pids.values(), process.pid]]
            )
            running = process.poll() is None
            for pid in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.last, _ = process.communicate()  # ends when the last process that writes has ended
        return running and process.returncode != 0

    @contextlib.contextmanager
    def started(self, run_dir: str) -> Iterator[tuple[subprocess.Popen[str], Iterator[tuple[int, int]]]]:
        """A run, and the rank and process id of each micro-batch as it begins, until the run has ended."""
        pipe = os.open(self.folder / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        process = self.start(run_dir)
        ended = os.pidfd_open(process.pid)
        try:
            yield process, _lines(pipe, ended)
        finally:
            for file in (pipe, ended):
                os.close(file)

    def look(self) -> None:
        """Whatever looks like a checkpoint is one."""
        folder = self.folder / "run" / "checkpoints"
        for path in folder.glob("step-*") if folder.exists() else ():
            assert problem_of(path) is None, f"{path}\n{self.last}"
        for export in (self.folder / "run" / "export").glob("[!.]*"):
            assert (export / "config.json").is_file(), f"{export}\n{self.last}"
            load_file(export / "model.safetensors")

    def soak(self) -> None:
        """Kill so often; a run that comes to its end first begins anew."""
        whole = self.finish("whole")
        done = 0
        while done < self.kills:
            done += self.kill_one(whole)
            self.look()
            if self.is_over("run"):
                assert self.weights_are_equal()
                (self.folder / "run").rename(self.folder / f"over-{done}")
        last = self.finish("run")
        assert self.weights_are_equal()
        assert self.at_any_time or last < whole, "the last run went on from a checkpoint"

    def is_over(self, run_dir: str) -> bool:
        return self._last("whole").name == self._last(run_dir).name

    def weights_are_equal(self) -> bool:
        one, two = (stored_weights(self._last(name)) for name in ("whole", "run"))
        assert one.keys() == two.keys()
        return all(torch.equal(value, two[name]) for name, value in one.items())

    def _last(self, run_dir: str) -> Path:
        return max((self.folder / run_dir / "checkpoints").glob("step-*"), default=Path("none"))


def _lines(pipe: int, ended: int) -> Iterator[tuple[int, int]]:
    """The lines of a pipe as pairs of numbers, until a process has ended."""
    text = b""
    while pipe in (ready := select.select([pipe, ended], [], [])[0]):
        if not (piece := os.read(pipe, 4096)):
            return  # everyone who wrote has ended
        *lines, text = (text + piece).split(b"\n")
        yield from (tuple(map(int, line.split())) for line in lines)  # type: ignore[misc]
    assert ended in ready


@pytest.mark.parametrize("case", ["two ranks, in the background"])
def test_a_few_kills(tmp_path, case):
    ranks, settings = CASES[case]
    Soak(tmp_path / "soak", ranks, {**settings, "epochs": 2}, kills=2, at_any_time=False).soak()


@pytest.mark.thorough
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", CASES)
def test_many_kills(tmp_path, case):
    Soak(tmp_path / "soak", *CASES[case], kills=25, at_any_time=True).soak()


def exporting(recipe: dict[str, Any], steps: int) -> dict[str, Any]:
    saves = [FULL, {"type": "huggingface", "save_every_n_steps": 1}]
    return {**recipe, "train_iters": steps, "checkpoint": saves}


def test_a_few_kills_of_a_run_that_exports_each_step(tmp_path, chat_recipe):
    Soak(tmp_path / "soak", 1, exporting(chat_recipe, 12), kills=2, at_any_time=False).soak()


@pytest.mark.thorough
@pytest.mark.timeout(3600)
def test_many_kills_of_a_run_that_exports_each_step(tmp_path, chat_recipe):
    Soak(tmp_path / "soak", 1, exporting(chat_recipe, 40), kills=25, at_any_time=True).soak()


@pytest.mark.thorough
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("order", soak.ORDERS)
@pytest.mark.parametrize("mode", soak.MODES)
def test_the_long_soak_in_short(tmp_path, mode, order):
    """What ``python -m benchmarks soak`` does a thousand times: nothing is lost, and nothing is left over."""
    lines = list(soak.Soak(tmp_path / "soak", mode, order, seed=3).run(3))
    assert lines[-1]["what"] == "compared" and not lines[-1]["problem"]
    assert all(line["what"] == "killed" for line in lines[:-1])
