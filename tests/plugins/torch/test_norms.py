"""Norm and clipping of gradients: bit by bit what torch's own functions give, for one kind of parameter and for more."""

from __future__ import annotations

import pytest
import torch
from hooktrain_torch.norms import Norms
from torch.nn import Parameter

ONE, TWO, HALF = (torch.float32,) * 5, (torch.float64, torch.float32, torch.float64), (torch.bfloat16,) * 3


@pytest.mark.parametrize("max_norm", [0.5, 1e9])
@pytest.mark.parametrize("dtypes", [ONE, TWO, HALF])
def test_as_torch_does_it(dtypes, max_norm):
    torch.manual_seed(0)
    parameters = [Parameter(torch.zeros(3 + n, 7, dtype=dtype)) for n, dtype in enumerate(dtypes)]
    for parameter in parameters[1:]:  # the first one takes no part
        parameter.grad = torch.randn_like(parameter)
    theirs = [Parameter(torch.zeros_like(parameter)) for parameter in parameters]
    for mine, other in zip(parameters[1:], theirs[1:], strict=True):
        other.grad = mine.grad.clone()
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm)

    norms = Norms(parameters)
    gradients = [parameter.grad for parameter in parameters[1:]]
    found = norms.total(gradients)
    norms.clip(gradients, max_norm, found)

    assert torch.equal(found, expected)
    for mine, other in zip(parameters[1:], theirs[1:], strict=True):
        assert torch.equal(mine.grad, other.grad)


def test_without_gradients():
    norms = Norms([Parameter(torch.zeros(3))])
    assert norms.total([]) == 0.0
    norms.clip([], 1.0, torch.zeros(()))


def test_a_norm_that_is_not_finite_stays_so():
    parameter = Parameter(torch.zeros(3))
    assert torch.isnan(Norms([parameter]).total([torch.tensor([1.0, float("nan"), 0.0])]))
