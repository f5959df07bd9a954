from __future__ import annotations

import pytest
import torch
from hooktrain import hookimpl
from hooktrain.testing import Recorder, conformance

test_conformance = conformance("damp", settings={"damp": {"factor": 0.5}})


class Norms:
    """Keeps the norm of the gradients of each step."""

    def __init__(self):
        self.found = []

    @hookimpl
    def on_optimizer_step_start(self, trainer):
        self.found.append(float(torch.nn.utils.get_total_norm([p.grad for p in trainer.model.parameters()])))


def test_a_step_above_the_limit_counts_as_one_at_it(run_tiny):
    still = {"train_iters": 2, "optimizer": {"type": "sgd", "lr": 0.0}, "log_interval": 1}
    plain, damped, lines = Norms(), Norms(), Recorder()
    run_tiny(plain, lines, **still)
    run_tiny(damped, **still, damp={"factor": 0.5, "memory": 0.0})
    first, second = (line["loss"] for line in lines.metrics)
    assert damped.found[0] == pytest.approx(0.5 * plain.found[0], rel=1e-5)
    assert damped.found[1] == pytest.approx(0.25 * first / second * plain.found[1], rel=1e-5)
