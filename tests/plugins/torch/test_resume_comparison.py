"""``hooktrain verify-resume`` on real runs: quiet where all is saved, and pointing at what was forgotten."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.facts import facts
from tests.preload import DEEPSPEED

pytestmark = pytest.mark.preload(*DEEPSPEED)

FORGETS = """
from hooktrain import hookimpl

class Forgets:
    scale = 1.0

    @hookimpl(wrapper=True)
    def compute_loss(self, model):
        loss = yield
        return loss._replace(total=loss.total * self.scale) if model.training else loss

    @hookimpl
    def on_step_end(self):
        self.scale *= 1.1

class Remembers(Forgets):
    @hookimpl
    def collect_state(self):
        return {"scale": self.scale}

    @hookimpl
    def restore_state(self, state):
        self.scale = state["scale"]
"""


@pytest.fixture
def verify(tmp_path: Path) -> Any:
    def run(*words: str, plugin: str = "", **changes: Any) -> subprocess.CompletedProcess[str]:
        (tmp_path / "mine.py").write_text(FORGETS)
        recipe = {
            "type": "tiny",
            "micro_batch_size": 2,
            "model": {"dropout": 0.3},
            "optimizer": {"lr": 0.01},
            "strategy": {"dtype": "fp32", "device": "cpu"},
            "plugins": {"load": ["hooktrain.testing:TinyPlugin", *([plugin] if plugin else [])]},
            **changes,
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return subprocess.run(
            [sys.executable, "-m", "hooktrain", "verify-resume", str(tmp_path / "recipe.yaml"), *words],
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=200,
        )

    return run


def test_a_run_that_saves_everything(verify):
    done = verify(plugin="mine:Remembers")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert re.search(facts("4 steps", "2 + 2"), lines[0])
    assert len(lines) == 11
    assert all("equal (" in line for line in lines[1:]), done.stdout


def test_a_plugin_that_forgets(verify):
    done = verify("--json", plugin="mine:Forgets")
    assert done.returncode == 1, done.stdout + done.stderr
    found = {finding["what"]: finding["differs"] for finding in json.loads(done.stdout)}
    assert found["batches of each step"] == ""
    assert found["random states"] == ""
    assert found["logged numbers"].startswith("step 3, loss: ")
    assert "apart" in found["weights"]
    shown = verify(plugin="mine:Forgets")
    assert shown.returncode == 1
    assert re.search(facts("Forgets", "state"), shown.stdout.splitlines()[-1])


def test_two_ranks(verify):
    strategy = {"type": "deepspeed", "zero_stage": 1, "dtype": "fp32", "device": "cpu"}
    done = verify("--nproc", "2", "--steps", "3", strategy=strategy, micro_batch_size=1)
    assert done.returncode == 0, done.stdout + done.stderr


def test_more_steps_than_there_are(verify):
    done = verify("--steps", "40")
    assert done.returncode == 1
    assert re.search(facts("--steps 40", "'uninterrupted'"), done.stderr)
