"""The ``deepspeed`` strategy: the training loop drives DeepSpeed's engine."""

from __future__ import annotations

import copy
import gc
import os
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from hooktrain_torch import (
    Ranks,
    SequenceGroup,
    aliases,
    data_world,
    device_of,
    divide,
    group_names,
    load_trained_state,
    native_bf16,
    parameter_names,
    place_frozen,
    trained_state,
)
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from hooktrain import (
    Batch,
    ExtraModel,
    HooktrainError,
    HooktrainWarning,
    NonFiniteError,
    OptimizerStep,
    Recipe,
    Scheduler,
    StoredTensors,
    TrainedModels,
    TrainedState,
    World,
)
from hooktrain_deepspeed.check import require_valid
from hooktrain_deepspeed.compat import (
    begin_forward,
    call_before_zero_grad,
    clear_global_lists,
    clear_gradients,
    configure_transformers,
    deepspeed_for,
    drop_process_groups,
    end_communication,
    full_numel,
    grad_norm_of,
    is_cpu_adam,
    is_partitioned,
    loss_scaler_of,
    quietly,
    reset_transformers,
    restore_linear,
)
from hooktrain_deepspeed.config import DeepSpeedConfig, assemble, bucket_size
from hooktrain_deepspeed.state import ZeroState

__all__ = ["DeepSpeedStrategy"]

T = TypeVar("T")


class DeepSpeedStrategy:
    """ZeRO in one of its stages.

    The engine is told where each accumulation window ends, instead of counting micro-batches, so that a short last
    window is a step like any other. The loss is divided by its denominator before, so the engine's own division by
    accumulation steps is switched off and that by ranks is undone.

    Args:
        config: stage, precision, offloading and DeepSpeed's own configuration.
        world: this process and how many there are.
        recipe: sizes and the limit of the gradient norm.
    """

    def __init__(self, config: DeepSpeedConfig, world: World, recipe: Recipe) -> None:
        self.config, self.world = config, world
        self.device = device_of(config.device, world)
        name = config.dtype
        if name == "auto":
            name = "bf16" if self.device.type == "cuda" and native_bf16(self.device) else "fp32"
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        self._dtype_name = name
        self.take_sizes(recipe)
        self.stage: int = self.settings["zero_optimization"]["stage"]
        self.shards_weights = self.stage == 3
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.data_world = data_world(world, config.sequence_parallel)
        self._deepspeed = deepspeed_for(self.device)
        self._ranks = Ranks(world, self.device, timeout=config.timeout, alone=True)
        self._names_rank = "LOCAL_RANK" not in os.environ
        os.environ.setdefault("LOCAL_RANK", str(world.local_rank))  # DeepSpeed reads it even where there is one rank
        with quietly():
            self._deepspeed.init_distributed(dist_init_required=False)
        for warning in require_valid(self.settings):
            if world.is_main:
                warnings.warn(warning, HooktrainWarning, stacklevel=2)
        self._sequence = SequenceGroup.of(self._ranks, config.sequence_parallel)
        self._engine: Any = None
        self._frozen: list[Any] = []
        self._zero: ZeroState | None = None
        self._updates, self._is_updating = 0, False
        self._grad_norm: Any = None
        self._on_zero_grad: Callable[[], None] | None = None
        self._groups: list[list[str]] = []
        self._hf: Any = None

    # ---------------------------------------------------------------------------------------------- building

    def take_sizes(self, recipe: Recipe) -> None:
        self.settings = assemble(self.config, recipe, self.world, self._dtype_name)

    def model_context(self) -> AbstractContextManager[Any]:
        # transformers then shards weights as it loads them, so that no rank ever holds the complete model. Models of
        # others are sharded later: within zero.Init, setting weights after building a module would have no effect
        if self.stage == 3:
            self._hf = configure_transformers(self.settings)
        return nullcontext()

    def prepare_model(self, model: Module) -> Module:
        return model if self.stage == 3 else model.to(self.device)

    def prepare_frozen_model(self, model: Module, extra: ExtraModel) -> Module:
        dtype = extra.torch_dtype or (None if self.stage == 0 or self.dtype is torch.float32 else self.dtype)
        if self.stage < 3:
            return place_frozen(model.to(dtype=dtype), extra, self.device)
        weights = {weight.dtype for weight in model.parameters() if weight.is_floating_point()}
        if any(map(is_partitioned, model.parameters())):  # as it was loaded, so that it cannot be cast any more
            if dtype is not None and weights != {dtype}:
                raise HooktrainError(
                    f"make_models: given a model whose weights were loaded sharded in {', '.join(map(str, weights))},"
                    f" expected {dtype}; load them in it, as in from_pretrained(..., dtype={dtype})"
                )
        else:
            model.to(dtype=dtype)
        with quietly():
            self._frozen.append(self._deepspeed.initialize(model=model, config=self._frozen_settings(model, extra))[0])
        return model

    def _frozen_settings(self, model: Module, extra: ExtraModel) -> dict[str, Any]:
        """Return the configuration of an engine that shards a model and trains nothing."""
        settings = copy.deepcopy(self.settings)
        types = {weight.dtype for weight in model.parameters()}
        for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
            settings[name] = {"enabled": types == {dtype}}
        zero = settings["zero_optimization"]
        for name in ("offload_optimizer", "offload_param"):
            zero.pop(name, None)
        if extra.offload:
            zero["offload_param"] = {"device": "cpu"}
        return settings

    def prepare(
        self, model: Module, optimizer: Optimizer, scheduler: Scheduler, accumulation: int
    ) -> tuple[Module, Optimizer, Scheduler]:
        offloaded = self.settings["zero_optimization"].get("offload_optimizer", {}).get("device", "none") != "none"
        if self.device.type != "cpu" and not offloaded and is_cpu_adam(optimizer):
            raise HooktrainError(
                "optimizer.type: given cpu_adam, but the weights are updated on the GPU; write strategy: {offload:"
                " optimizer}, or fused_adam"
            )
        self._optimizer = optimizer
        self._groups = [names for names in group_names(optimizer, parameter_names(model)) if names]
        trainable = sum(full_numel(p) for p in model.parameters() if p.requires_grad)
        self.settings["zero_optimization"]["reduce_bucket_size"] = bucket_size(self.settings, trainable)
        with quietly():
            self._engine, *_ = self._deepspeed.initialize(
                model=model, optimizer=optimizer, config=self.settings, dist_init_required=False
            )
        if self.stage > 0:
            self._zero = ZeroState(self._engine, model, self._groups, self.world.is_main)
        return model, optimizer, scheduler

    def watch_updates(self, on_update: Callable[[Any], None], on_zero_grad: Callable[[], None]) -> None:
        def before_step(*_: Any) -> None:
            self._updates += 1
            if self._updates == 1:  # ZeRO has the optimizer update one group of weights after another
                on_update(grad_norm_of(self._engine) if self.stage > 0 else self._grad_norm)

        self._optimizer.register_step_pre_hook(before_step)
        if self.stage > 0:
            self._on_zero_grad = on_zero_grad
        else:  # it is the engine that clears them, in its step
            call_before_zero_grad(self._engine, lambda: on_zero_grad() if self._is_updating else None)

    # ---------------------------------------------------------------------------------------------- computing

    def compute(self, function: Callable[[], T], last: bool) -> T:
        engine = self._engine
        if torch.is_grad_enabled():
            engine.set_gradient_accumulation_boundary(last)
            if self.stage > 0:
                engine.optimizer.clear_backward_seen_flag()
            if self.stage == 3 and isinstance(engine.module, TrainedModels):  # which nobody calls
                begin_forward(engine)
        if not engine.torch_autocast_enabled():
            return function()
        with torch.autocast(self.device.type, engine.torch_autocast_dtype()):
            return function()

    def to_device(self, batch: Batch) -> Batch:
        if self.device.type == "cpu":
            return batch
        return {k: v.to(self.device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def elements(self, parameter: Tensor) -> int:
        return full_numel(parameter)

    def divide(self, batch: Batch) -> Batch:
        return divide(batch, self._sequence)

    def backward(self, loss: Tensor, last: bool) -> Tensor:
        self._engine.set_gradient_accumulation_boundary(last)
        # the engine averages over ranks, where a sum is needed
        self._engine.backward(loss * self.world.world_size, scale_wrt_gas=False)
        return loss

    def optimizer_step(self, max_norm: float, wants_norm: bool, skip_non_finite: bool) -> OptimizerStep:
        engine, norm = self._engine, None
        self._is_updating = True
        if self.stage == 0 and (max_norm > 0 or wants_norm or skip_non_finite):
            gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            scaler = engine.torch_autocast_z0_gradscaler
            norm = norm if scaler is None else norm / scaler.get_scale()
            if skip_non_finite and scaler is None and not bool(norm.isfinite()):
                self.zero_grad()
                self._is_updating = False
                return OptimizerStep(norm, stepped=False)
        self._updates, self._grad_norm = 0, norm
        engine.step()
        stepped, self._is_updating = engine.was_step_applied(), False
        if self._on_zero_grad is not None:  # the gradients were never with the weights
            self._on_zero_grad()
        if self.stage > 0:
            norm = engine.get_global_grad_norm()
            if not stepped and self.dtype is not torch.float16 and not skip_non_finite:
                raise NonFiniteError(
                    "strategy: the gradients are not finite; lower optimizer.lr, check the data, or skip such"
                    " steps with on_nan: skip"
                )
        return OptimizerStep(norm, stepped)

    def zero_grad(self) -> None:
        self._engine.zero_grad()
        if self.stage > 0:
            clear_gradients(self._engine)

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
        for name, parameter in model.named_parameters():  # one at a time: no rank holds more than one complete weight
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
        if self._zero is not None:
            return self._zero.trained()
        return trained_state(model, optimizer) if self.world.is_main else TrainedState([], [], {})

    def load_trained_state(
        self,
        model: Module,
        optimizer: Optimizer,
        stored: tuple[StoredTensors, StoredTensors],
        rest: Mapping[str, Any],
        left_out: Collection[str],
    ) -> None:
        if self._zero is not None:
            self._zero.load(stored, rest, left_out)
        else:
            load_trained_state(model, optimizer, stored, rest, left_out)

    def save_own(self, folder: Path, tag: str) -> None:
        """Have DeepSpeed save to ``folder/tag``. Collective."""
        with quietly():
            self._engine.save_checkpoint(str(folder), tag=tag, client_state={})

    def state_dict(self) -> dict[str, Any]:
        scaler = self._engine.torch_autocast_z0_gradscaler
        if scaler is not None:
            return {"scaler": scaler.state_dict()}
        loss_scaler = loss_scaler_of(self._engine)
        if self.dtype is not torch.float16 or loss_scaler is None:
            return {}
        plain = (bool, int, float, str, type(None))
        return {"loss_scaler": {key: value for key, value in vars(loss_scaler).items() if isinstance(value, plain)}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if "scaler" in state and self._engine.torch_autocast_z0_gradscaler is not None:
            self._engine.torch_autocast_z0_gradscaler.load_state_dict(state["scaler"])
        elif "loss_scaler" in state and self.dtype is torch.float16:
            vars(self._engine.optimizer.loss_scaler).update(state["loss_scaler"])

    def close(self) -> None:
        self._sequence = None
        while self._frozen:
            engine = self._frozen.pop()
            engine.destroy()
            drop_process_groups(engine.module)
        if self._engine is not None:
            model = self._engine.module
            self._engine.destroy()
            drop_process_groups(model)
            self._engine = self._zero = None
            if self.stage == 3:
                clear_global_lists()
        if self.stage == 3:
            restore_linear()
        if self._hf is not None:
            reset_transformers()
            self._hf = None
        if torch.distributed.is_initialized():
            end_communication(self._deepspeed)
        self._ranks.close()
        if self._names_rank:
            os.environ.pop("LOCAL_RANK", None)
        gc.collect()
