"""Sends gradients between ranks in half of their bytes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from hooktrain import HooktrainError, PluginInfo, hookimpl
from torch import Tensor

hooktrain_plugin = PluginInfo(changes_gradients=True)


@hookimpl
def make_communication_hook(data_parallel: str) -> Any:
    if data_parallel != "ddp":
        raise HooktrainError(
            f"compressed: given data_parallel: {data_parallel}, expected"
            " ddp; remove the plugin, or change the strategy"
        )
    return sum_bucket


def sum_bucket(bucket: Any) -> torch.futures.Future[Tensor]:
    whole = bucket.buffer()
    half = whole.to(torch.bfloat16)
    work = dist.all_reduce(half, async_op=True)
    summed: torch.futures.Future[Tensor] = work.get_future().then(
        lambda done: whole.copy_(done.value()[0])
    )
    return summed
