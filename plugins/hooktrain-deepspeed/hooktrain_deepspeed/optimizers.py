"""DeepSpeed's own optimizers, which are compiled when they are first used."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from hooktrain_torch.optimizers import decay_groups

from hooktrain import HooktrainError, at_least, field

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.optim import Optimizer

__all__ = ["CPUAdamConfig", "FusedAdamConfig", "alone", "make_optimizer"]

_COMPILING = "compiling"


def _below_one(instance: Any, attribute: Any, value: tuple[float, float]) -> None:
    if not all(0 <= beta < 1 for beta in value):
        raise ValueError(f"given {list(value)}, expected two numbers from 0 to below 1")


@attrs.frozen(kw_only=True)
class FusedAdamConfig:
    """AdamW for a GPU, many weights in one kernel."""

    lr: float = field(default=2e-5, validator=at_least(0), aliases=("learning_rate",))
    """Learning rate."""
    weight_decay: float = field(default=0.1, validator=at_least(0))
    """Decay of matrices; biases, norms and other vectors are not decayed."""
    betas: tuple[float, float] = field(default=(0.9, 0.999), validator=_below_one)
    """Decay rates of the running means of gradient and squared gradient."""
    eps: float = field(default=1e-8, validator=at_least(0))
    """Added to the denominator."""
    decay_vectors: bool = field(default=False)
    """Whether to decay biases, norms and other vectors as well."""
    decoupled: bool = field(default=True)
    """Whether the decay is kept apart from the gradient (AdamW), or added to it (Adam)."""


@attrs.frozen(kw_only=True)
class CPUAdamConfig(FusedAdamConfig):
    """AdamW for weights in the processor's memory, with its vector instructions; what ``offload: optimizer`` is for."""


def make_optimizer(config: FusedAdamConfig, model: Module) -> Optimizer:
    """The optimizer of a config, over the model's parameters that take gradients.

    Raises:
        HooktrainError: when nothing can be trained, or the optimizer cannot be had here.
    """
    import torch  # which a recipe is read without
    from torch._subclasses.fake_tensor import FakeTensor

    groups = decay_groups(model, config.weight_decay, config.decay_vectors)
    if isinstance(groups[0]["params"][0], FakeTensor):  # a plan counts what is kept, which is the same for every AdamW
        return torch.optim.AdamW(groups, lr=config.lr)
    gpu = torch.cuda.is_available()
    name, kind = ("cpu_adam", "DeepSpeedCPUAdam") if isinstance(config, CPUAdamConfig) else ("fused_adam", "FusedAdam")
    if kind == "FusedAdam" and not gpu:
        raise HooktrainError(
            "optimizer.type: given fused_adam, which needs a GPU, and torch finds none here; write adamw or cpu_adam"
        )
    from hooktrain_deepspeed.library import deepspeed_for, quietly

    mode = {"adamw_mode" if kind == "DeepSpeedCPUAdam" else "adam_w_mode": config.decoupled}
    deepspeed_for(torch.device("cuda" if gpu else "cpu"))
    from deepspeed.ops import adam

    try:
        with alone(name), quietly():
            made: Optimizer = getattr(adam, kind)(groups, lr=config.lr, betas=config.betas, eps=config.eps, **mode)
    except (RuntimeError, ImportError, OSError) as problem:
        reason = " ".join(str(problem).split())[:300]
        raise HooktrainError(
            f"optimizer.type: given {name}, which cannot be compiled here ({reason}); install a C++ compiler, and for a"
            " GPU its toolkit, or write adamw"
        ) from problem
    return made


@contextlib.contextmanager
def alone(name: str) -> Iterator[None]:
    """Compile an extension in one process at a time.

    Torch guards its folder with a lock file, which a process that is killed meanwhile leaves behind, and for which all
    later ones wait for ever. Here the guard goes with its process, and tells who comes next that the file is left over.
    """
    from torch.utils.cpp_extension import _get_build_directory

    folder = Path(_get_build_directory(name, False))  # type: ignore[no-untyped-call]
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
