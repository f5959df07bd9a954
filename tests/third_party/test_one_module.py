"""Another author's plugin in one module: a wheel, used through the command line, without a base class."""

from __future__ import annotations

import json

import pytest

from tests.environments import Environment, build_wheels, unpack, write_recipe
from tests.third_party.runs import done

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
    return hooktrain.LossSum(loss.total * 2, loss.denominator)


@hookimpl
def run_step(trainer, batches):
    total = 0
    for batch in batches:
        total = total + trainer.microbatch(batch).total
    update = trainer.optimizer_step()
    print("stranger ran the step")
    return hooktrain.StepOutput(total, update.grad_norm, update.stepped)
'''


@pytest.fixture
def stranger(tmp_path):
    """An environment with the stranger's wheel."""
    source = tmp_path / "stranger"
    source.mkdir()
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "stranger.py").write_text(MODULE)
    return Environment.of(unpack(build_wheels(tmp_path, [source]).iterdir(), tmp_path / "site"))


def test_a_strangers_plugin(stranger, tmp_path, tiny_recipe):
    listed = json.loads(done(stranger.hooktrain(tmp_path, "plugins", "--json")).stdout)
    (fact,) = [fact for fact in listed if fact["name"] == "stranger"]
    assert (fact["distribution"], fact["version"], fact["state"]) == ("hooktrain-stranger", "3.1", "active")
    assert fact["summary"] == "Signs of gradients, and more"
    assert fact["registers"] == ["optimizer/sign"]

    raw = {**tiny_recipe, "plugins": {"load": ["hooktrain.testing:TinyPlugin"]}, "train_iters": 3}
    del raw["run_dir"]
    recipe = write_recipe(tmp_path / "with_it.yaml", {**raw, "optimizer": {"type": "sign", "lr": 0.5}})
    run = done(stranger.hooktrain(tmp_path, "train", recipe))
    assert run.stdout.splitlines().count("stranger ran the step") == 3
    assert "stranger saw step 3 of 3" in run.stdout
    recipe = write_recipe(tmp_path / "without.yaml", {**raw, "optimizer": {"type": "sgd", "lr": 0.0}})
    blocked = done(stranger.hooktrain(tmp_path, "train", recipe, "-p", "no:stranger"))
    with_it, without = ([line["loss"] for line in each.metrics] for each in (run, blocked))
    assert with_it[0] == pytest.approx(2 * without[0]), "the loss was wrapped"
    assert abs(with_it[2] - 2 * without[2]) > 0.1, "its optimizer moved the weights"

    manifest = json.loads((blocked.folder / "plugins.json").read_text())["plugins"]
    assert "stranger" not in [plugin["name"] for plugin in manifest], "it was blocked in the second run"
