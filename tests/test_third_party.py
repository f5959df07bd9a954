"""A stranger's plugin: built into a wheel, pip-installed, seen through the command line, no class of ours subclassed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import yaml

PYPROJECT = """
[build-system]
requires = ["setuptools>=61"]
build-backend = "setuptools.build_meta"

[project]
name = "hooktrain-stranger"
version = "3.1"
description = "Signs of gradients, and more"
dependencies = ["hooktrain"]

[project.entry-points.hooktrain]
stranger = "stranger"

[tool.setuptools]
py-modules = ["stranger"]
"""

MODULE = '''
"""A plugin in one module."""

import attrs
import torch
import hooktrain
from hooktrain import hookimpl


@attrs.frozen(kw_only=True)
class SignConfig:
    lr: float = hooktrain.field(default=1e-3, validator=hooktrain.at_least(0))


class SignDescent(torch.optim.Optimizer):
    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] * p.grad.sign()


@hookimpl
def register_configs():
    return {"optimizer": {"sign": SignConfig}}


@hookimpl
def make_optimizer(config, model):
    if isinstance(config, SignConfig):
        return SignDescent(model.parameters(), config.lr)


@hookimpl
def on_step_end(trainer, output):
    print(f"stranger saw step {trainer.global_step} of {trainer.training_horizon}")


@hookimpl(wrapper=True)
def compute_loss(trainer):
    loss = yield
    return hooktrain.LossSum(loss.total * 2, loss.weight)


@hookimpl
def run_step(trainer, batches):
    total = 0
    for batch in batches:
        total = total + trainer.microbatch(batch).total
    update = trainer.optimizer_step()
    print("stranger ran the step")
    return hooktrain.StepOutput(total, update.grad_norm, update.stepped)
'''


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Where the stranger's wheel has been installed."""
    folder = tmp_path_factory.mktemp("stranger")
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "stranger.py").write_text(MODULE)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", "wheels", "."], cwd=folder, check=True)
    (wheel,) = (folder / "wheels").glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", "site", str(wheel)], cwd=folder, check=True)
    return folder / "site"


def test_a_strangers_plugin(site, tmp_path, tiny_recipe):
    def hooktrain(*words: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "hooktrain", *words]
        return subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    (stranger,) = [fact for fact in json.loads(hooktrain("plugins", "--json")) if fact["name"] == "stranger"]
    assert (stranger["distribution"], stranger["version"], stranger["state"]) == ("hooktrain-stranger", "3.1", "active")
    assert stranger["summary"] == "Signs of gradients, and more"
    assert stranger["offers"] == ["optimizer/sign"]

    recipe = tmp_path / "recipe.yaml"
    raw = {**tiny_recipe, "plugins": {"load": ["hooktrain.testing:TinyPlugin"]}, "train_iters": 3}
    recipe.write_text(yaml.safe_dump({**raw, "optimizer": {"type": "sign", "lr": 0.5}}))
    shown = hooktrain("train", str(recipe))
    assert shown.splitlines().count("stranger ran the step") == 3
    assert "stranger saw step 3 of 3" in shown
    with_it = [json.loads(line)["loss"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    hooktrain("train", str(recipe), "-p", "no:stranger", "-o", "optimizer={type: sgd, lr: 0.0}")
    without = [json.loads(line)["loss"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert with_it[0] == pytest.approx(2 * without[0]), "the loss was wrapped"
    assert abs(with_it[2] - 2 * without[2]) > 0.1, "its optimizer moved the weights"

    manifest = json.loads((tmp_path / "run/plugins.json").read_text())["plugins"]
    assert "stranger" not in [plugin["name"] for plugin in manifest], "it was blocked in the second run"
