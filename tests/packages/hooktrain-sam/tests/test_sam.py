from __future__ import annotations

import pytest
import torch
from hooktrain import hookimpl
from hooktrain.testing import Recorder, conformance

test_conformance = conformance("sam", settings={"sam": {"rho": 0.05}})


class Gradients:
    """Keeps weights and gradients before the first update."""

    @hookimpl
    def on_optimizer_step_start(self, trainer):
        if trainer.global_step == 0:
            self.found = {name: (each.clone(), each.grad.clone()) for name, each in trainer.model.named_parameters()}


def test_the_gradient_is_that_of_the_weights_uphill(run_tiny):
    plain, uphill, losses = Gradients(), Gradients(), [Recorder(), Recorder()]
    run_tiny(plain, losses[0], train_iters=1, optimizer={"type": "sgd", "lr": 0.0})
    run_tiny(uphill, losses[1], train_iters=1, optimizer={"type": "sgd", "lr": 0.0}, sam={"rho": 0.5})
    assert losses[0].metrics[0]["loss"] == losses[1].metrics[0]["loss"], "that of the weights themselves"
    for name, (weight, gradient) in uphill.found.items():
        assert torch.equal(weight, plain.found[name][0]), "which are put back"
        assert not torch.equal(gradient, plain.found[name][1])
    one, two = (torch.stack([g.norm() for _, g in each.found.values()]).norm() for each in (plain, uphill))
    assert float(two) == pytest.approx(float(one), rel=1.0)
