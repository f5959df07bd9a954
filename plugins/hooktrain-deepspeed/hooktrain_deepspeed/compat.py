"""Private names of DeepSpeed, transformers and torch, and attributes that only DeepSpeed's objects have.

Seen to work with DeepSpeed 0.19.8, transformers 5.23.0 and torch 2.13.0.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

__all__ = [
    "Address",
    "ConfigRefusedError",
    "address_of",
    "begin_forward",
    "build_folder",
    "call_before_zero_grad",
    "clear_global_lists",
    "clear_gradients",
    "config_models",
    "configure_transformers",
    "deepspeed_for",
    "drop_process_groups",
    "end_communication",
    "full_numel",
    "grad_norm_of",
    "is_cpu_adam",
    "is_fake",
    "is_partitioned",
    "loss_scaler_of",
    "parse_config",
    "partition_rank",
    "quietly",
    "refresh_half_weights",
    "reset_transformers",
    "restore_linear",
]


class ConfigRefusedError(Exception):
    """DeepSpeed does not accept its configuration."""


class Address(NamedTuple):
    """The shard of a parameter that a rank updates under ZeRO 1 and 2.

    Attributes:
        start: its first element in the flattened parameter.
        length: its elements.
        offset: its first element in the vector that the optimizer updates.
    """

    start: int
    length: int
    offset: int


# ------------------------------------------------------------------------------------------------- the module


def deepspeed_for(device: torch.device) -> Any:
    """Import ``deepspeed``, set up for a device.

    Args:
        device: where the run computes. DeepSpeed chooses one when it is imported, by what it finds.
    """
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    logger = logging.getLogger("DeepSpeed")
    level = logger.level
    deepspeed = importlib.import_module("deepspeed")
    if level == logging.NOTSET and "DEEPSPEED_LOG_LEVEL" not in os.environ:
        logger.setLevel(logging.WARNING)  # at its own level it prints a page of settings on every start
    if device.type == "cpu":
        # it would compile a kernel that only inference calls, behind a lock file: a run that is killed meanwhile leaves
        # the lock, and every later run waits forever (the module's name as an attribute is torch itself)
        backend: Any = importlib.import_module("deepspeed.comm.torch")
        backend.build_shm_op = lambda: None
    warnings.filterwarnings("ignore", "`torch.distributed..*` is deprecated", FutureWarning, "torch.distributed")
    return deepspeed


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Hold back what DeepSpeed prints, and print it only after an exception."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    except BaseException:
        print(printed.getvalue(), end="")
        raise


def clear_global_lists() -> None:
    """Clear DeepSpeed's module-level lists, which keep all of a finished engine: weights and threads.

    Stage 3 has two: the modules whose forward is running, where the outermost one is never removed, and a cache of the
    weights that a module may release.
    """
    offload: Any = importlib.import_module("deepspeed.runtime.zero.parameter_offload")
    offload.FWD_MODULE_STACK.clear()
    coordinator: Any = importlib.import_module("deepspeed.runtime.zero.partitioned_param_coordinator")
    for found in vars(coordinator.PartitionedParameterCoordinator).values():
        for cell in getattr(found, "__closure__", None) or ():  # the cache is inside a decorator that measures
            if hasattr(cell.cell_contents, "cache_clear"):
                cell.cell_contents.cache_clear()


def restore_linear() -> None:
    """Give torch its own ``linear`` back, which stage 3 replaces for the rest of the process.

    DeepSpeed's transposes weights, which packed ones do not support.
    """
    parameters: Any = importlib.import_module("deepspeed.runtime.zero.partition_parameters")
    own = getattr(parameters.InsertPostInitMethodToModuleSubClasses, "linear_bk", None)
    if own is not None:
        torch.nn.functional.linear = own


def end_communication(deepspeed: Any) -> None:
    """Destroy DeepSpeed's process groups."""
    deepspeed.comm.destroy_process_group()
    deepspeed.comm.comm.cdb = None


# ---------------------------------------------------------------------------------------------- configuration


def parse_config(settings: dict[str, Any], recorded: dict[str, Any]) -> None:
    """Have DeepSpeed read its configuration.

    Args:
        settings: the configuration.
        recorded: the same, as a mapping that records which keys are read.

    Raises:
        ConfigRefusedError: with what DeepSpeed says.
        pydantic.ValidationError: with the values that its models refuse.
    """
    from pydantic import ValidationError

    module: Any = importlib.import_module("deepspeed.runtime.config")
    try:
        module.DeepSpeedConfig.__new__(module.DeepSpeedConfig)._initialize_params(recorded)
        module.DeepSpeedConfig(settings)
    except ValidationError:  # which is a ValueError
        raise
    except module.DeepSpeedConfigError as problem:
        raise ConfigRefusedError(" ".join(str(problem).split())) from problem
    except (AssertionError, ValueError, TypeError, KeyError, AttributeError) as problem:
        raise ConfigRefusedError(f"{type(problem).__name__}: {' '.join(str(problem).split())}") from problem


def config_models() -> dict[str, Any]:
    """Return DeepSpeed's models of sections of its configuration by name, each with its ``model_fields``."""
    module: Any = importlib.import_module("deepspeed.runtime.config_utils")
    return {model.__name__: model for model in module.DeepSpeedConfigModel.__subclasses__()}


class _ForTransformers:
    """What transformers reads of an engine's configuration."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def is_zero3(self) -> bool:
        return True


def configure_transformers(settings: dict[str, Any]) -> Any:
    """Have transformers load weights one by one into a model that ZeRO-3 shards.

    Returns:
        What has to be kept, since transformers keeps only a weak reference to it; None where it is not installed.
    """
    try:
        module: Any = importlib.import_module("transformers.integrations.deepspeed")
    except ImportError:
        return None
    made = _ForTransformers(settings)
    module.set_hf_deepspeed_config(made)
    return made


def reset_transformers() -> None:
    """Undo :func:`configure_transformers`."""
    module: Any = importlib.import_module("transformers.integrations.deepspeed")
    module.unset_hf_deepspeed_config()


# ------------------------------------------------------------------------------------------------- optimizers


def build_folder(name: str) -> Path:
    """Return the folder in which torch compiles an extension."""
    extensions: Any = importlib.import_module("torch.utils.cpp_extension")
    return Path(extensions._get_build_directory(name, False))


def is_fake(tensor: Tensor) -> bool:
    """Return whether a tensor is one of a plan, which has no values."""
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(tensor, FakeTensor)


def is_cpu_adam(optimizer: Any) -> bool:
    """Return whether an optimizer is DeepSpeed's for the processor, once DeepSpeed is imported."""
    adam: Any = importlib.import_module("deepspeed.ops.adam")
    return isinstance(optimizer, adam.DeepSpeedCPUAdam)


def loss_scaler_of(engine: Any) -> Any:
    """Return the loss scaler of an engine's optimizer, or None."""
    return getattr(engine.optimizer, "loss_scaler", None)


def grad_norm_of(engine: Any) -> Any:
    """Return the norm of all gradients while a ZeRO optimizer updates the weights."""
    return engine.optimizer._global_grad_norm


def call_before_zero_grad(engine: Any, function: Callable[[], None]) -> None:
    """Have an engine without ZeRO call a function before it clears gradients, also inside its own step."""
    zero_grad = engine.zero_grad

    def called_before() -> None:
        function()
        zero_grad()

    engine.zero_grad = called_before


def clear_gradients(engine: Any) -> None:
    """Clear the gradients that a ZeRO optimizer keeps, without an update."""
    zero = engine.optimizer
    if engine.zero_optimization_partition_weights():
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


def begin_forward(engine: Any) -> None:
    """Begin a new record of the order of modules under ZeRO-3, as a call of the outermost one does.

    Without it no record is ever complete, and weights are never fetched ahead.
    """
    engine.optimizer.parameter_offload.get_param_coordinator().reset_step()


def refresh_half_weights(zero: Any) -> None:
    """Set the weights that a model computes with from the float32 copy, under ZeRO 1 and 2."""
    zero.update_lp_params()
    for number in range(len(zero.bit16_groups)):
        zero._update_model_bit16_weights(number)
    zero._hp_optimizer_states_linked = False


# ------------------------------------------------------------------------------------------------- parameters


def full_numel(parameter: Tensor) -> int:
    """Return the elements of a weight, also where ZeRO-3 has sharded it, which leaves none."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def is_partitioned(parameter: Tensor) -> bool:
    """Return whether ZeRO-3 has sharded a weight."""
    return hasattr(parameter, "ds_tensor")


def partition_rank(zero: Any, parameter: Tensor) -> int:
    """Return the position of this rank's shard among the shards of a weight, under ZeRO-3."""
    return int(zero._get_param_partition_rank(parameter))


def address_of(parameter: Any) -> Address | None:
    """Return where this rank's shard of a parameter is, under ZeRO 1 and 2, or None where it has none."""
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
    return Address(here.start, here.numel, there.start)


def drop_process_groups(model: Module) -> None:
    """Remove the references to process groups that ZeRO-3 keeps in weights: they would keep the groups' threads."""
    for parameter in model.parameters():
        for name in [name for name in vars(parameter) if name.startswith("ds_") and "group" in name]:
            delattr(parameter, name)
