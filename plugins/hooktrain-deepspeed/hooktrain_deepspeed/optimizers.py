"""DeepSpeed's own optimizers, which it compiles at their first use."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import attrs
from hooktrain_torch import GroupConfig, parameter_groups, require_betas

from hooktrain import HooktrainError, at_least, field

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.optim import Optimizer

__all__ = ["CPUAdamConfig", "FusedAdamConfig", "compile_lock", "make_optimizer"]

_COMPILING = "compiling"


@attrs.frozen(kw_only=True)
class FusedAdamConfig:
    """AdamW for a GPU, with many weights in one kernel."""

    lr: float = field(default=2e-5, validator=at_least(0), aliases=("learning_rate",))
    """Learning rate."""
    weight_decay: float = field(default=0.1, validator=at_least(0))
    """Decay of matrices; biases, norms and other vectors are not decayed."""
    betas: tuple[float, float] = field(default=(0.9, 0.999), validator=require_betas)
    """Decay rates of the running means of gradient and squared gradient."""
    eps: float = field(default=1e-8, validator=at_least(0))
    """Added to the denominator."""
    decay_vectors: bool = field(default=False)
    """Whether to decay biases, norms and other vectors as well."""
    decoupled: bool = field(default=True)
    """Whether the decay is separate from the gradient (AdamW), or added to it (Adam)."""
    groups: tuple[GroupConfig, ...] = field(factory=tuple)
    """Parameters with hyperparameters of their own."""


@attrs.frozen(kw_only=True)
class CPUAdamConfig(FusedAdamConfig):
    """AdamW for weights in the processor's memory, with its vector instructions; what ``offload: optimizer`` is for."""


def make_optimizer(config: FusedAdamConfig, model: Module) -> Optimizer:
    """Make the optimizer of a config, over the model's trainable parameters.

    Raises:
        HooktrainError: when nothing can be trained, or the optimizer cannot be compiled here.
    """
    import torch  # which a recipe is read without

    from hooktrain_deepspeed.compat import deepspeed_for, is_fake, quietly

    groups = parameter_groups(config, model)
    if is_fake(groups[0]["params"][0]):  # a plan counts the state, which is the same for every AdamW
        return torch.optim.AdamW(groups, lr=config.lr)
    gpu = torch.cuda.is_available()
    on_cpu = isinstance(config, CPUAdamConfig)
    name = "cpu_adam" if on_cpu else "fused_adam"
    if not on_cpu and not gpu:
        raise HooktrainError(
            "optimizer.type: given fused_adam, which needs a GPU, and torch finds none here; write adamw or cpu_adam"
        )
    mode = {"adamw_mode" if on_cpu else "adam_w_mode": config.decoupled}
    deepspeed_for(torch.device("cuda" if gpu else "cpu"))
    adam: Any = importlib.import_module("deepspeed.ops.adam")
    kind = adam.DeepSpeedCPUAdam if on_cpu else adam.FusedAdam
    try:
        with compile_lock(name), quietly():
            made: Optimizer = kind(groups, lr=config.lr, betas=config.betas, eps=config.eps, **mode)
    except (RuntimeError, ImportError, OSError) as problem:
        reason = " ".join(str(problem).split())[:300]
        raise HooktrainError(
            f"optimizer.type: given {name}, which cannot be compiled here ({reason}); install a C++ compiler, and for a"
            " GPU its toolkit, or write adamw"
        ) from problem
    return made


@contextlib.contextmanager
def compile_lock(name: str) -> Iterator[None]:
    """Compile an extension in one process at a time.

    Torch locks its folder with a file, which a killed process leaves behind, and for which all later ones wait forever.
    This lock ends with its process, and what it contains tells the next process whether torch's file is a leftover.
    """
    from hooktrain_deepspeed.compat import build_folder

    folder = build_folder(name)
    with (folder.parent / f".{name}.hooktrain").open("a+") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        guard.seek(0)
        if guard.read() == _COMPILING:
            (folder / "lock").unlink(missing_ok=True)
        guard.truncate(0)
        guard.write(_COMPILING)
        guard.flush()
        try:
            yield
        finally:
            guard.truncate(0)
