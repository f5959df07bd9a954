"""Runs that are killed again and again, at any time, end with the weights of a run that was never disturbed.

The short form is part of every run of the tests; the long one is ``pytest -m thorough tests/test_soak.py``.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hooktrain_torch.files import problem_of
from safetensors.torch import load_file

from hooktrain.testing.processes import NOTES
from tests.launching import stored_weights
from tests.plugins.sft.runs import base, recipe  # noqa: F401 (fixtures)

SLOW = """
import time

@hookimpl
def on_microbatch_start(trainer):
    note(pid=os.getpid(), step=trainer.global_step)
    time.sleep(0.02)
"""
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
    """Starts a run again after each kill."""

    def __init__(self, folder: Path, ranks: int, settings: dict[str, Any], seed: int) -> None:
        self.folder, self.ranks, self.settings, self.random = folder, ranks, settings, random.Random(seed)
        self.last = ""
        folder.mkdir()
        (folder / "extra.py").write_text(NOTES + SLOW)

    def start(self, run_dir: str) -> subprocess.Popen[str]:
        load = ["hooktrain.testing:TinyPlugin", "extra"]
        changes = {"run_dir": str(self.folder / run_dir), "console": {"enabled": False}, "plugins": {"load": load}}
        path = self.folder / f"{run_dir}.yaml"
        path.write_text(yaml.safe_dump({**self.settings, **changes}))
        for notes in self.folder.glob("notes.*"):
            notes.unlink()
        mine = {"PYTHONPATH": str(self.folder), "NOTES": str(self.folder / "notes"), "OMP_NUM_THREADS": "1"}
        words = ["--nproc", str(self.ranks)] if self.ranks > 1 else []
        return subprocess.Popen(
            [sys.executable, "-m", "hooktrain", "train", str(path), *words],
            env={**os.environ, **mine, **({"RANK": "0"} if self.ranks == 1 else {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, run_dir: str) -> None:
        process = self.start(run_dir)
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output

    def kill_one(self) -> bool:
        """Start, and kill one of the processes, or all, at a random time; returns whether it was still running."""
        process = self.start("run")
        while process.poll() is None and not self.pids():
            time.sleep(0.005)
        time.sleep(self.random.uniform(0.0, 1.0))
        victims = self.random.choice([[pid] for pid in (*self.pids(), process.pid)] + [[*self.pids(), process.pid]])
        running = process.poll() is None
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.last, _ = process.communicate(timeout=100)  # ends when the last process that writes has ended
        return running and process.returncode != 0

    def pids(self) -> list[int]:
        found = []
        for rank in range(self.ranks):
            path = self.folder / f"notes.{rank}"
            lines = path.read_text().splitlines() if path.exists() else []
            if not lines:
                return []
            found.append(int(json.loads(lines[0])["pid"]))
        return found

    def look(self) -> None:
        """Whatever looks like a checkpoint is one."""
        folder = self.folder / "run" / "checkpoints"
        for path in folder.glob("step-*") if folder.exists() else ():
            assert problem_of(path) == "", f"{path}\n{self.last}"
        for export in (self.folder / "run" / "export").glob("[!.]*"):
            assert (export / "config.json").is_file(), f"{export}\n{self.last}"
            load_file(export / "model.safetensors")

    def soak(self, kills: int) -> int:
        """Kill so often; a run that comes to its end first begins anew."""
        done = 0
        while done < kills:
            done += self.kill_one()
            self.look()
            if self.is_over("run"):
                assert self.weights_are_equal()
                (self.folder / "run").rename(self.folder / f"over-{done}")
        self.finish("run")
        assert self.weights_are_equal()
        return done

    def is_over(self, run_dir: str) -> bool:
        return self._last("whole").name == self._last(run_dir).name

    def weights_are_equal(self) -> bool:
        one, two = (stored_weights(self._last(name)) for name in ("whole", "run"))
        assert one.keys() == two.keys()
        return all(torch.equal(value, two[name]) for name, value in one.items())

    def _last(self, run_dir: str) -> Path:
        return max((self.folder / run_dir / "checkpoints").glob("step-*"), default=Path("none"))


def soak(folder: Path, ranks: int, settings: dict[str, Any], kills: int) -> None:
    made = Soak(folder / "soak", ranks, settings, seed=kills)
    made.finish("whole")
    print(f"\n{made.soak(kills)} kills", end=" ")


@pytest.mark.parametrize("case", ["one rank, in the background", "two ranks, in the background"])
def test_a_few_kills(tmp_path, case):
    soak(tmp_path, *CASES[case], kills=3)


@pytest.mark.thorough
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", CASES)
def test_many_kills(tmp_path, case):
    soak(tmp_path, *CASES[case], kills=25)


def exporting(recipe: dict[str, Any]) -> dict[str, Any]:  # noqa: F811
    saves = [FULL, {"type": "huggingface", "save_every_n_steps": 1}]
    return {**recipe, "train_iters": 40, "checkpoint": saves}


def test_a_few_kills_of_a_run_that_exports_each_step(tmp_path, recipe):  # noqa: F811
    soak(tmp_path, 1, exporting(recipe), kills=3)


@pytest.mark.thorough
@pytest.mark.timeout(3600)
def test_many_kills_of_a_run_that_exports_each_step(tmp_path, recipe):  # noqa: F811
    soak(tmp_path, 1, exporting(recipe), kills=25)
