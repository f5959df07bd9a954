from __future__ import annotations

import torch
from hooktrain import hookimpl
from hooktrain.testing import conformance

test_conformance = conformance("lookahead", settings={"lookahead": {"every": 3}})


class Weights:
    """Keeps a weight at the beginning and after each step."""

    @hookimpl
    def on_train_start(self, trainer):
        self.found = [trainer.model.head.weight.detach().clone()]

    @hookimpl
    def on_step_end(self, trainer):
        self.found.append(trainer.model.head.weight.detach().clone())


def test_every_second_step_goes_back_half_of_the_way(run_tiny):
    plain, slow = Weights(), Weights()
    run_tiny(plain, train_iters=2)
    run_tiny(slow, train_iters=2, lookahead={"every": 2, "share": 0.5})
    assert torch.equal(plain.found[1], slow.found[1])
    torch.testing.assert_close(slow.found[2], (plain.found[0] + plain.found[2]) / 2)
