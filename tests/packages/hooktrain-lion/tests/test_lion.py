from __future__ import annotations

import pytest
import torch
from hooktrain import RecipeError
from hooktrain.testing import conformance
from hooktrain_lion import Lion

test_conformance = conformance("lion", settings={"optimizer": {"type": "lion", "lr": 1e-3, "weight_decay": 0.1}})


def test_two_steps_by_hand():
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    lion = Lion([weight], lr=0.1, betas=(0.5, 0.75), weight_decay=0.5)
    weight.grad = torch.tensor([4.0, 4.0])
    lion.step()  # 1 - 0.1 * 0.5 of the weights, less 0.1 * sign(0.5 * 0 + 0.5 * 4)
    torch.testing.assert_close(weight.data, torch.tensor([0.95 - 0.1, -1.9 - 0.1]))
    weight.grad = torch.tensor([-0.5, -2.0])
    lion.step()  # the momentum is 1: sign(0.5 * 1 - 0.25) = 1, sign(0.5 * 1 - 1) = -1
    torch.testing.assert_close(weight.data, torch.tensor([0.85 * 0.95 - 0.1, -2.0 * 0.95 + 0.1]))
    torch.testing.assert_close(lion.state[weight]["exp_avg"], torch.tensor([0.75 - 0.125, 0.75 - 0.5]))


def test_a_beta_of_one_is_refused(run_tiny):
    with pytest.raises(RecipeError, match=r"optimizer\.betas: given \[0\.9, 1\.0\], expected two numbers"):
        run_tiny(optimizer={"type": "lion", "betas": [0.9, 1.0]})
