"""The ``deepspeed`` strategy: the loop drives DeepSpeed's engine, window by window."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from hooktrain_torch.ranks import Ranks, device_of, native_bf16
from hooktrain_torch.sequence import SequenceGroup, data_world, divide
from hooktrain_torch.whole_state import aliases, group_names, load_whole, parameter_names, whole_state
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from hooktrain import (
    Batch,
    HooktrainError,
    HooktrainWarning,
    NonFiniteError,
    OptimizerStep,
    Recipe,
    Scheduler,
    StoredTensors,
    TrainedState,
    World,
)
from hooktrain_deepspeed.check import require_valid
from hooktrain_deepspeed.config import DeepSpeedConfig, assemble, bucket_size
from hooktrain_deepspeed.library import deepspeed_for, let_go, quietly
from hooktrain_deepspeed.state import ZeroState

__all__ = ["DeepSpeedStrategy"]

T = TypeVar("T")


class DeepSpeedStrategy:
    """ZeRO in one of its stages.

    The end of a window is always said to the engine, which would count micro-batches by itself, so that a short last
    window is a step like any other; and the loss is divided by the window's tokens before it comes here, so that the
    engine's own division by accumulation steps is switched off and that by ranks undone.

    Args:
        config: stage, precision, offloading and DeepSpeed's own configuration.
        world: this process and how many there are.
        recipe: sizes and the limit of the gradient norm.
    """

    def __init__(self, config: DeepSpeedConfig, world: World, recipe: Recipe) -> None:
        self.config, self.world = config, world
        self.device = device_of(config.device, world)
        self._dtype = config.dtype
        if self._dtype == "auto":
            self._dtype = "bf16" if self.device.type == "cuda" and native_bf16(self.device) else "fp32"
        self.settings = assemble(config, recipe, world, self._dtype)
        self.stage: int = self.settings["zero_optimization"]["stage"]
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.data_world = data_world(world, config.sequence_parallel)
        self._deepspeed = deepspeed_for(self.device)
        self._ranks = Ranks(world, self.device, timeout=config.timeout, alone=True)
        self._names_rank = "LOCAL_RANK" not in os.environ
        os.environ.setdefault("LOCAL_RANK", str(world.local_rank))  # asked for even where there is one rank
        with quietly():
            self._deepspeed.init_distributed(dist_init_required=False)
        for warning in require_valid(self.settings):
            if world.is_main:
                warnings.warn(warning, HooktrainWarning, stacklevel=2)
        self._sequence: SequenceGroup | None = None
        if config.sequence_parallel > 1:
            group = self._ranks.neighbours(config.sequence_parallel)
            self._sequence = SequenceGroup(world, config.sequence_parallel, group)
        self._engine: Any = None
        self._zero: Any = None
        self._groups: list[list[str]] = []
        self._hf: Any = None

    # ---------------------------------------------------------------------------------------------- building

    def model_context(self) -> AbstractContextManager[Any]:
        # transformers then cuts weights up as it loads them, so that no rank ever holds the whole model. What others
        # build is cut up later: inside zero.Init, whatever sets weights after building a module would set nothing
        if self.stage == 3:
            self._hf = _tell_transformers(self.settings)
        return nullcontext()

    def prepare_model(self, model: Module) -> Module:
        return model if self.stage == 3 else model.to(self.device)

    def prepare(
        self, model: Module, optimizer: Optimizer, scheduler: Scheduler, accumulation: int
    ) -> tuple[Module, Optimizer, Scheduler]:
        offloaded = self.settings["zero_optimization"].get("offload_optimizer", {}).get("device", "none") != "none"
        if type(optimizer).__name__ == "DeepSpeedCPUAdam" and self.device.type != "cpu" and not offloaded:
            raise HooktrainError(
                "optimizer.type: given cpu_adam, but the weights are updated on the GPU; write strategy: {offload:"
                " optimizer}, or fused_adam"
            )
        self._groups = [names for names in group_names(optimizer, parameter_names(model)) if names]
        trainable = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad)
        self.settings["zero_optimization"]["reduce_bucket_size"] = bucket_size(self.settings, trainable)
        with quietly():
            self._engine, *_ = self._deepspeed.initialize(
                model=model, optimizer=optimizer, config=self.settings, dist_init_required=False
            )
        if self.stage > 0:
            self._zero = ZeroState(self._engine, model, self._groups, self.world.is_main)
        return model, optimizer, scheduler

    # ---------------------------------------------------------------------------------------------- computing

    def compute(self, function: Callable[[], T], last: bool) -> T:
        engine = self._engine
        if torch.is_grad_enabled():
            engine.set_gradient_accumulation_boundary(last)
            if self.stage > 0:
                engine.optimizer.clear_backward_seen_flag()
        if not engine.torch_autocast_enabled():
            return function()
        with torch.autocast(self.device.type, engine.torch_autocast_dtype()):
            return function()

    def to_device(self, batch: Batch) -> Batch:
        if self.device.type == "cpu":
            return batch
        return {k: v.to(self.device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def divide(self, batch: Batch) -> Batch:
        return batch if self._sequence is None else divide(batch, self._sequence)

    def backward(self, loss: Tensor, last: bool) -> Tensor:
        self._engine.set_gradient_accumulation_boundary(last)
        # the engine averages over ranks what is to be summed
        self._engine.backward(loss * self.world.world_size, scale_wrt_gas=False)
        return loss

    def optimizer_step(self, max_norm: float, wants_norm: bool, skip_non_finite: bool) -> OptimizerStep:
        engine, norm = self._engine, None
        if self.stage == 0 and (max_norm > 0 or wants_norm or skip_non_finite):
            gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            scaler = engine.torch_autocast_z0_gradscaler
            norm = norm if scaler is None else norm / scaler.get_scale()
            if skip_non_finite and scaler is None and not bool(norm.isfinite()):
                self.zero_grad()
                return OptimizerStep(norm, stepped=False)
        engine.step()
        stepped = engine.was_step_applied()
        if self.stage > 0:
            norm = engine.get_global_grad_norm()
            if not stepped and self._dtype != "fp16" and not skip_non_finite:
                raise NonFiniteError(
                    "strategy: the gradients are not finite; lower optimizer.lr, check the data, or leave such steps"
                    " out with on_nan: skip"
                )
        return OptimizerStep(norm, stepped)

    def zero_grad(self) -> None:
        self._engine.zero_grad()
        if self.stage == 0:
            return
        zero = self._engine.optimizer
        if self.stage == 3:
            zero._overflow_clean_up(None)
            return
        zero.zero_grad(set_to_none=True)
        zero._release_preflattened_grad_buffers()
        zero.micro_step_id = -1
        if zero.cpu_offload:
            zero.reset_cpu_buffers()
        else:
            for number in list(zero.averaged_gradients):
                zero.averaged_gradients[number] = zero.all_grad_tensors[number] = None

    # ------------------------------------------------------------------------------------------------- ranks

    def sum_tensor(self, value: Tensor) -> Tensor:
        return self._ranks.sum_tensor(value)

    def sum_numbers(self, values: Sequence[float]) -> list[float]:
        return self._ranks.sum_numbers(values)

    def gather_objects(self, value: Any) -> list[Any]:
        return self._ranks.gather_objects(value)

    def barrier(self) -> None:
        self._ranks.barrier()

    # ------------------------------------------------------------------------------------------------- state

    def unwrap(self, model: Module) -> Module:
        return model

    def full_state_dict(self, model: Module) -> dict[str, Tensor]:
        if self.stage < 3:
            if not self.world.is_main:
                return {}
            return {name: value.detach().cpu() for name, value in model.state_dict().items()}
        made: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():  # one at a time: no rank holds more than one whole weight
            with self._deepspeed.zero.GatheredParameters([parameter]):
                if self.world.is_main:
                    made[name] = parameter.detach().cpu().clone()
        if not self.world.is_main:
            return {}
        kept = model.state_dict().keys()
        made.update((name, value.detach().cpu()) for name, value in model.named_buffers() if name in kept)
        made.update((name, made[first]) for name, first in aliases(model).items())
        return made

    def trained_state(self, model: Module, optimizer: Optimizer) -> TrainedState:
        if self.stage > 0:
            return self._zero.trained()
        return whole_state(model, optimizer) if self.world.is_main else TrainedState([], [], {})

    def load_trained_state(
        self,
        model: Module,
        optimizer: Optimizer,
        stored: tuple[StoredTensors, StoredTensors],
        rest: Mapping[str, Any],
        left_out: Collection[str],
    ) -> None:
        if self.stage > 0:
            self._zero.load(stored, rest, left_out)
        else:
            load_whole(model, optimizer, stored, rest, left_out)

    def save_own(self, folder: Path, tag: str) -> None:
        """Have DeepSpeed save to ``folder/tag``. Collective."""
        with quietly():
            self._engine.save_checkpoint(str(folder), tag=tag, client_state={})

    def state_dict(self) -> dict[str, Any]:
        scaler = self._engine.torch_autocast_z0_gradscaler
        if scaler is not None:
            return {"scaler": scaler.state_dict()}
        loss_scaler = getattr(self._engine.optimizer, "loss_scaler", None)
        if self._dtype != "fp16" or loss_scaler is None:
            return {}
        plain = (bool, int, float, str, type(None))
        return {"loss_scaler": {key: value for key, value in vars(loss_scaler).items() if isinstance(value, plain)}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if "scaler" in state and self._engine.torch_autocast_z0_gradscaler is not None:
            self._engine.torch_autocast_z0_gradscaler.load_state_dict(state["scaler"])
        elif "loss_scaler" in state and self._dtype == "fp16":
            vars(self._engine.optimizer.loss_scaler).update(state["loss_scaler"])

    def close(self) -> None:
        self._sequence = None
        if self._engine is not None:
            model = self._engine.module
            self._engine.destroy()
            for parameter in model.parameters():  # as in hooktrain_torch.ranks: whoever holds a group keeps its threads
                for name in [name for name in vars(parameter) if name.startswith("ds_") and "group" in name]:
                    delattr(parameter, name)
            self._engine = self._zero = None
            if self.stage == 3:
                let_go()
        if self._hf is not None:
            from transformers.integrations.deepspeed import unset_hf_deepspeed_config

            unset_hf_deepspeed_config()
            self._hf = None
        comm = self._deepspeed.comm
        if torch.distributed.is_initialized():
            comm.destroy_process_group()
            comm.comm.cdb = None
        self._ranks.close()
        if self._names_rank:
            os.environ.pop("LOCAL_RANK", None)
        gc.collect()


def _tell_transformers(settings: dict[str, Any]) -> Any:
    """Have transformers load weights piece by piece into a model that is cut up; it looks at what is returned here.

    It keeps only a weak reference, so the answer has to be kept.
    """
    try:
        from transformers.integrations.deepspeed import set_hf_deepspeed_config
    except ImportError:
        return None
    found = _ForTransformers(settings)
    set_hf_deepspeed_config(found)
    return found


class _ForTransformers:
    """What transformers asks about the engine."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def is_zero3(self) -> bool:
        return True
