"""Runs on several ranks: real processes, started as a user starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from hooktrain_torch.stored import FromFiles

from hooktrain.testing import Recorder

__all__ = ["NOTES", "Run", "alone", "assert_equal_runs", "launch", "notes", "stored_weights"]


def stored_weights(path: Path, kind: str = "model") -> dict[str, torch.Tensor]:
    """All tensors of a ``full`` checkpoint, put together from all ranks' files."""
    tensors = FromFiles(path, kind, json.loads((path / "tensors.json").read_text())[kind])
    return {name: tensors.read(name).view(tensors.shape(name)).clone() for name in tensors.names()}


class Run(NamedTuple):
    code: int
    output: str
    seconds: float
    folder: Path

    @property
    def metrics(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def weights(self, step: int) -> dict[str, torch.Tensor]:
        return stored_weights(self.folder / "checkpoints" / f"step-{step:08d}")


NOTES = """
import json, os
from pathlib import Path
import torch
from hooktrain import hookimpl

def note(**facts):
    with Path(os.environ["NOTES"]).with_suffix("." + os.environ["RANK"]).open("a") as stream:
        stream.write(json.dumps(facts) + "\\n")
"""


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., Run]:
    """``launch(ranks, plugin source, key=value)``: run the tiny recipe in so many processes, as the command line does.

    The source is a module with the name ``extra``; its ``note(...)`` writes to a file of each rank.
    """

    def start(ranks: int, source: str = "", *, words: list[str] | None = None, script: str = "", **changes: Any) -> Run:
        (tmp_path / "extra.py").write_text(NOTES + textwrap.dedent(source))
        load = ["hooktrain.testing:TinyPlugin", *(["extra"] if source else [])]
        recipe = {
            "type": "tiny",
            "run_dir": str(tmp_path / "ranks"),
            "micro_batch_size": 2,
            "strategy": {"dtype": "fp32", "device": "cpu"},
            "optimizer": {"type": "sgd", "lr": 0.1},
            "console": {"enabled": False},
            "plugins": {"load": load},
            **changes,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe))
        command = [sys.executable, "-m", "hooktrain", "train", str(path), "--nproc", str(ranks)]
        if script:
            (tmp_path / "script.py").write_text(textwrap.dedent(script))
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
            command += [str(tmp_path / "script.py"), "train", str(path)]
        found = {"PYTHONPATH": str(tmp_path), "NOTES": str(tmp_path / "notes"), "OMP_NUM_THREADS": "1"}
        began = time.monotonic()
        done = subprocess.run(
            [*command, *(words or [])],
            check=False,
            env={**os.environ, **found},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
        )
        return Run(done.returncode, done.stdout, time.monotonic() - began, tmp_path / "ranks")

    return start


@pytest.fixture
def notes(tmp_path: Path) -> Callable[[int], list[dict[str, Any]]]:
    """What a rank has noted."""

    def read(rank: int) -> list[dict[str, Any]]:
        path = tmp_path / f"notes.{rank}"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return read


def alone(run_tiny: Callable[..., Any], *plugins: object, **changes: Any) -> tuple[Recorder, Any]:
    """The same run in one process."""
    recorder = Recorder()
    return recorder, run_tiny(recorder, *plugins, **{"optimizer": {"type": "sgd", "lr": 0.1}, **changes})


TIMES = ("tokens_per_second", "step_seconds")


def assert_equal_runs(run: Run, recorder: Recorder, trainer: Any) -> None:
    """Every logged number and every weight within 1e-6."""
    assert run.code == 0, run.output
    assert len(run.metrics) == len(recorder.metrics), "one line for each step, written once"
    for mine, reference in zip(run.metrics, recorder.metrics, strict=True):
        assert mine.keys() == reference.keys()
        same = [name for name in reference if name not in TIMES]
        assert [mine[name] for name in same] == pytest.approx([reference[name] for name in same], abs=1e-6)
    for name, value in run.weights(trainer.global_step).items():
        torch.testing.assert_close(value, trainer.model.state_dict()[name], rtol=0, atol=1e-6)
