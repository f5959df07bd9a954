from __future__ import annotations

import torch
from hooktrain import hookimpl
from hooktrain.testing import conformance

test_conformance = conformance("centralize", settings={"centralize": {"enabled": True}})


class Means:
    """Keeps the means of the rows of a gradient."""

    @hookimpl
    def on_optimizer_step_start(self, trainer):
        self.found = trainer.model.head.weight.grad.mean(dim=1), trainer.model.head.bias.grad.clone()


def test_rows_of_matrices_have_no_mean(run_tiny):
    plain, centered = Means(), Means()
    run_tiny(plain, train_iters=1)
    run_tiny(centered, train_iters=1, centralize={"enabled": True})
    assert plain.found[0].abs().max() > 1e-4 and centered.found[0].abs().max() < 1e-6
    assert torch.equal(plain.found[1], centered.found[1]), "a vector keeps its"
