"""The loops that hooktrain is compared with: PyTorch's DistributedDataParallel and FSDP2, and DeepSpeed, alone."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.strategy.common import LOG_EVERY, LR, Blocks, batch_of, loss_of
from hooktrain.bench.driver import StepClock

__all__ = ["train"]


def train(given: dict[str, Any], rank: int, world: int) -> dict[str, Any]:
    """Train on this rank; every five steps, read the loss of all ranks, as a log line does."""
    torch.manual_seed(0)
    model = Blocks(**given["model"])
    tokens, vocab, rows = given["tokens"], given["model"]["vocab"], given["rows"]
    step = _deepspeed(model, given) if given["strategy"].startswith("zero") else _pytorch(model, given["strategy"])
    batches = [batch_of((n * world + rank) * rows, rows, tokens, vocab) for n in range(given["steps"])]
    clock, losses, since = StepClock(), [], torch.zeros(())
    for at, ids in enumerate(batches, 1):
        since += step(ids)
        if at % LOG_EVERY == 0:
            dist.all_reduce(since)
            losses.append(since.item() / (LOG_EVERY * world))
            since = torch.zeros(())
        clock.step()
    return {**clock.findings(), "loss": losses}


def _pytorch(model: Blocks, strategy: str) -> Callable[[Tensor], Tensor]:
    parallel: Any = model
    if strategy == "fsdp2":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh, reshard_after_forward=False)
    else:
        parallel = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=LR, weight_decay=0.0, fused=True)

    def step(ids: Tensor) -> Tensor:
        loss = loss_of(parallel, ids) / (ids.numel() - len(ids))
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(parallel.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def _deepspeed(model: Blocks, given: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    # a kernel that only inference calls, compiled in a minute
    importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # type: ignore[attr-defined]

    settings = {
        "train_micro_batch_size_per_gpu": given["rows"],
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": int(given["strategy"][-1])},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=True)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)

    def step(ids: Tensor) -> Tensor:
        loss = loss_of(engine, ids) / (ids.numel() - len(ids))
        engine.backward(loss)
        engine.step()
        return loss.detach()

    return step
