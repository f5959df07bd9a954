"""The ``torch`` strategy: one process, or several with DistributedDataParallel or FSDP2."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from hooktrain import (
    Batch,
    ExtraModel,
    HooktrainError,
    HooktrainWarning,
    NonFiniteError,
    OptimizerStep,
    Scheduler,
    StoredTensors,
    TrainedState,
    World,
)
from hooktrain_torch.compat import keep_from_ddp
from hooktrain_torch.complete_state import load_trained_state, trained_state
from hooktrain_torch.frozen_models import place_frozen, shard_frozen
from hooktrain_torch.fsdp import shard_model
from hooktrain_torch.half_precision import describe_slow_half
from hooktrain_torch.malloc import keep_freed_memory, return_freed_memory
from hooktrain_torch.ranks import Ranks, device_of, native_bf16
from hooktrain_torch.sequence import SequenceGroup, data_world, divide
from hooktrain_torch.sharded import is_sharded
from hooktrain_torch.strategy_config import TorchConfig

__all__ = ["TorchStrategy"]

T = TypeVar("T")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class _Caller(Module):
    """Calls any function in its forward method, which is all that DistributedDataParallel and FSDP2 see of a model.

    A loss may call parts of the model, such as the decoder without its head.
    """

    def __init__(self, model: Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()


class TorchStrategy:
    """Mixed precision by autocast; gradients summed over ranks by DistributedDataParallel or FSDP2.

    Args:
        config: precision, device and how the model is distributed.
        world: this process and how many there are.
    """

    def __init__(self, config: TorchConfig, world: World) -> None:
        self.config, self.world = config, world
        self.device = device_of(config.device, world)
        name = config.dtype
        if name == "auto":
            name = "bf16" if native_bf16(self.device) else "fp32"
        self.dtype = _DTYPES[name]
        if world.is_main and (slow := describe_slow_half(config.dtype, self.device)):
            warnings.warn(slow, HooktrainWarning, stacklevel=2)
        self.scaler = torch.amp.GradScaler(self.device.type) if name == "fp16" else None
        self.data_parallel = config.data_parallel
        self.shards_weights = config.data_parallel == "fsdp2"
        self._parameters: list[torch.nn.Parameter] = []
        self._parallel: DistributedDataParallel | None = None
        self._sharded: Any = None
        self._frozen: list[Any] = []
        self._reduced = True
        self._communicate: Callable[[Any], torch.futures.Future[Tensor]] | None = None
        self._grad_norm: Tensor | None = None
        self._on_zero_grad: Callable[[], None] | None = None
        self._on_host = self.device.type == "cpu"
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        elif self._on_host:
            keep_freed_memory()
        self.data_world = data_world(world, config.sequence_parallel)
        self._ranks = Ranks(world, self.device, timeout=config.timeout, alone=self.shards_weights)
        self._sequence = SequenceGroup.of(self._ranks, config.sequence_parallel)

    @property
    def usable_when_closed(self) -> bool:
        return self.world.world_size == 1 and not self.shards_weights

    def model_context(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def prepare_model(self, model: Module) -> Module:
        if self.shards_weights:
            self._sharded = shard_model(_Caller(model), self.device, self.dtype, self.config.find_unused_parameters)
            return model
        return model.to(self.device)

    def prepare_frozen_model(self, model: Module, extra: ExtraModel) -> Module:
        if not self.shards_weights:
            return place_frozen(model, extra, self.device)
        self._frozen.append(shard_frozen(model, extra, self.device, self.dtype))
        return model

    def prepare(
        self, model: Module, optimizer: Optimizer, scheduler: Scheduler, accumulation: int
    ) -> tuple[Module, Optimizer, Scheduler]:
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._optimizer = optimizer
        if self.world.world_size > 1 and self._sharded is None:
            caller = _Caller(model)
            keep_from_ddp(caller)
            self._parallel = DistributedDataParallel(
                caller,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                find_unused_parameters=self.config.find_unused_parameters,
                gradient_as_bucket_view=True,
            )
            # torch reads a hook's annotations and refuses text, so it gets a function without any
            self._parallel.register_comm_hook(None, lambda state, bucket: self._sum_bucket(bucket))
        return model, optimizer, scheduler

    def watch_updates(self, on_update: Callable[[Any], None], on_zero_grad: Callable[[], None]) -> None:
        # by the optimizer itself, as a gradient scaler decides only then whether there is an update
        self._optimizer.register_step_pre_hook(lambda *_: on_update(self._grad_norm))
        self._on_zero_grad = on_zero_grad

    def use_communication_hook(self, made: Any) -> None:
        """Have a plugin's object sum the gradients over the ranks, see the hook ``make_communication_hook``."""
        from torch.distributed.fsdp import FSDPModule

        if self._sharded is None:
            self._communicate = made
            return
        for module in self._sharded.modules():
            if isinstance(module, FSDPModule):
                module.set_custom_reduce_scatter(made)

    def _sum_bucket(self, bucket: Any) -> torch.futures.Future[Tensor]:
        """Sum over ranks, where DistributedDataParallel averages: the loss is divided by all ranks' denominator."""
        self._reduced = bucket.is_last()  # buckets are sent in order, so with the last one all are
        if self._communicate is not None:
            return self._communicate(bucket)
        work = dist.all_reduce(bucket.buffer(), async_op=True)
        summed: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
        return summed

    def compute(self, function: Callable[[], T], last: bool) -> T:
        if self._parallel is None and self._sharded is None and self.dtype is torch.float32:
            return function()
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
            if self._sharded is not None:
                for frozen in self._frozen:  # what lies in no block: somebody may call a part of the model
                    frozen.unshard()
                found: T = self._sharded(function)
                for frozen in self._frozen:
                    frozen.reshard()
                if not torch.is_grad_enabled():
                    self._sharded.reshard()  # with gradients the backward pass does it
                return found
            if self._parallel is None or not torch.is_grad_enabled():
                return function()
            # gradients are sent once a step, with its last micro-batch
            with nullcontext() if last else self._parallel.no_sync():
                made: T = self._parallel(function)
                return made

    def to_device(self, batch: Batch) -> Batch:
        if self._on_host:
            return batch
        return {k: v.to(self.device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def divide(self, batch: Batch) -> Batch:
        return divide(batch, self._sequence)

    def backward(self, loss: Tensor, last: bool) -> Tensor:
        self._reduced = self._parallel is None or not last
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]
        if not self._reduced:
            self._explain_unused()
        return loss

    def _explain_unused(self) -> None:
        """Raise an error for parameters without a gradient, for which DistributedDataParallel still waits."""
        assert self._parallel is not None
        unused = (n for n, p in self._parallel.module.model.named_parameters() if p.requires_grad and p.grad is None)
        named = ", ".join(islice(unused, 3)) or "some that earlier micro-batches of the step used"
        raise HooktrainError(
            f"strategy: no gradient reached some parameters in the last micro-batch of a step ({named}), so gradients"
            " cannot be summed over ranks; freeze them, or write find_unused_parameters: true under strategy"
        )

    def optimizer_step(self, max_norm: float, wants_norm: bool, skip_non_finite: bool) -> OptimizerStep:
        optimizer, norm = self._optimizer, None
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        if max_norm > 0 or wants_norm or skip_non_finite:
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            norm = norm.full_tensor() if is_sharded(norm) else norm
            if max_norm > 0:
                torch.nn.utils.clip_grads_with_norm_(self._parameters, max_norm, norm)
        stepped, self._grad_norm = True, norm
        if self.scaler is not None:
            before = self.scaler.get_scale()
            self.scaler.step(optimizer)
            self.scaler.update()
            stepped = self.scaler.get_scale() >= before
            if not stepped and before < 1 and not skip_non_finite:
                raise NonFiniteError(
                    f"strategy: the gradients are not finite, and a loss scale of {before:g} shows that this is no"
                    " overflow of fp16; lower optimizer.lr, check the data, or skip such steps with on_nan: skip"
                )
        elif skip_non_finite and norm is not None and not bool(norm.isfinite()):
            stepped = False
        else:
            optimizer.step()
        if self._on_zero_grad is not None:
            self._on_zero_grad()
        self.zero_grad()
        return OptimizerStep(norm, stepped)

    def zero_grad(self) -> None:
        # Optimizer.zero_grad without its profiling, which counts in a small model's step
        for parameter in self._parameters:
            parameter.grad = None

    def sum_tensor(self, value: Tensor) -> Tensor:
        return self._ranks.sum_tensor(value)

    def sum_numbers(self, values: Sequence[float]) -> list[float]:
        return self._ranks.sum_numbers(values)

    def gather_objects(self, value: Any) -> list[Any]:
        return self._ranks.gather_objects(value)

    def barrier(self) -> None:
        self._ranks.barrier()

    def unwrap(self, model: Module) -> Module:
        return model

    def full_state_dict(self, model: Module) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        gathered: dict[int, Tensor] = {}
        for name, value in self._resharded(model).state_dict(keep_vars=True).items():
            if is_sharded(value):  # one at a time: no other rank holds more than one complete weight
                if id(value) not in gathered:
                    full = value.detach().full_tensor()  # type: ignore[attr-defined]
                    gathered[id(value)] = full.cpu() if self.world.is_main else full[:0]
                made[name] = gathered[id(value)]
            else:
                made[name] = value.detach().cpu()
        return made if self.world.is_main else {}

    def trained_state(self, model: Module, optimizer: Optimizer) -> TrainedState:
        if self._sharded is None and not self.world.is_main:
            return TrainedState([], [], {})
        return trained_state(self._resharded(model), optimizer, is_main=self.world.is_main)

    def load_trained_state(
        self,
        model: Module,
        optimizer: Optimizer,
        stored: tuple[StoredTensors, StoredTensors],
        rest: Mapping[str, Any],
        left_out: Collection[str],
    ) -> None:
        load_trained_state(self._resharded(model), optimizer, stored, rest, left_out)

    def _resharded(self, model: Module) -> Module:
        """Return the bare model with its parameters as the optimizer has them."""
        if self._sharded is not None:
            self._sharded.reshard()
        return model

    def state_dict(self) -> dict[str, Any]:
        return {} if self.scaler is None else {"scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.scaler is not None and "scaler" in state:
            self.scaler.load_state_dict(state["scaler"])

    def close(self) -> None:
        self._parallel = self._sharded = self._sequence = None
        self._frozen.clear()
        self._ranks.close()
        if self._on_host:
            return_freed_memory()
