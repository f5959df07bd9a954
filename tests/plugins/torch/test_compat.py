"""What the plugin reads of torch besides its public names is there, and means what it is used for."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
from hooktrain_torch import compat, full_shape
from hooktrain_torch.hyperparameters import as_built
from hooktrain_torch.schedules import ConstantConfig, make_schedule
from torch import distributed as dist
from torch import nn
from torch.distributed import distributed_c10d


def test_base_rates():
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (0.5, 0.25)])
    ours = make_schedule(ConstantConfig(), optimizer, 1)
    torchs = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    assert [as_built(optimizer, each)["base_lrs"] for each in (ours, torchs)] == [[0.5, 0.25]] * 2
    assert as_built(optimizer, object())["base_lrs"] is None


def test_bf16_of_the_processor():
    assert compat.cpu_has_bf16() in (True, False)


def test_new_groups_get_the_exchanged_timeout():
    patience = timedelta(seconds=77)
    before = compat.exchange_group_timeouts((patience, patience))
    try:
        assert distributed_c10d._get_default_timeout(dist.Backend("gloo")) == patience
    finally:
        assert compat.exchange_group_timeouts(before) == (patience, patience)
    assert before[0] > patience


@pytest.mark.parametrize("sharded", [False, True])
def test_full_shape(sharded):
    weight = nn.Parameter(torch.zeros(0) if sharded else torch.zeros(3, 4))
    if sharded:
        weight.ds_shape = torch.Size([3, 4])
    assert full_shape(weight) == (3, 4)
