from __future__ import annotations

import pytest
import torch
from hooktrain import hookimpl
from hooktrain.testing import conformance

test_conformance = conformance("gradient_noise", settings={"gradient_noise": {"scale": 0.01}})


class Gradients:
    """Keeps all gradients of a step, after the noise."""

    @hookimpl(trylast=True)
    def on_optimizer_step_start(self, trainer):
        self.found = torch.cat([weight.grad.flatten() for weight in trainer.model.parameters()])


def test_its_variance_is_the_scale_in_the_first_step(run_tiny):
    plain, noisy = Gradients(), Gradients()
    run_tiny(plain, train_iters=1)
    run_tiny(noisy, train_iters=1, gradient_noise={"scale": 0.04})
    assert float((noisy.found - plain.found).std()) == pytest.approx(0.2, rel=0.2)
