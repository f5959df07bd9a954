"""Whether Triton and each of Liger's kernels run where the model is going to be, found out before weights are read."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hooktrain import ModelError

__all__ = ["device_for", "failure_of", "interpreting"]

_INSTEAD = "write type: huggingface, whose layers and loss run everywhere"


def interpreting() -> bool:
    """Whether Triton runs kernels in Python on the CPU; it reads the variable when Liger is first imported."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def device_for(wanted: str) -> torch.device:
    """The device whose tensors Liger's kernels are going to see.

    Args:
        wanted: ``device`` of the recipe's strategy, or ``auto``.

    Raises:
        ModelError: Liger or Triton is not there, or there is no device that Triton makes code for.
    """
    try:
        import liger_kernel.transformers  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"model.type: given 'liger', but Liger cannot be imported ({error}); expected the packages liger-kernel and"
            f" triton, which exist for Linux; install them, or {_INSTEAD}"
        ) from error
    if interpreting():
        return torch.device("cpu")
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if wanted.startswith("cpu") or found is None or found.type not in ("cuda", "xpu", "npu"):
        why = "the strategy computes on the CPU" if wanted.startswith("cpu") else "torch finds none on this machine"
        raise ModelError(
            f"model.type: given 'liger', whose Triton kernels need a GPU, but {why}; {_INSTEAD}, or set the environment"
            " variable TRITON_INTERPRET=1 to try small models in Triton's slow interpreter"
        )
    return found


def failure_of(kernel: str, device: torch.device, softcap: float | None = None) -> Exception | None:
    """Run a kernel forward and backward on a few numbers; returns what it raised.

    Without a C compiler or a matching driver, Triton fails only when it is first used: deep in the first step, after
    the weights have been loaded.

    Args:
        kernel: what the recipe calls it.
        device: from ``device_for``.
        softcap: for ``fused_linear_cross_entropy`` and ``cross_entropy``, that of the model.
    """
    try:
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            _TRIALS[kernel](device, softcap).sum().backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # compilers, drivers and the interpreter each raise kinds of their own
        return error
    return None


def _numbers(device: torch.device, *shape: int) -> Tensor:
    return torch.ones(shape, device=device, requires_grad=True) * 0.5  # kernels may write into what they are given


def _rope(device: torch.device, softcap: float | None) -> Tensor:
    from liger_kernel.transformers.functional import liger_rope

    angles = torch.ones(1, 4, 16, device=device)
    rotated: Tensor = liger_rope(_numbers(device, 1, 2, 4, 16), _numbers(device, 1, 1, 4, 16), angles, angles)[0]
    return rotated


def _module(name: str) -> Callable[[torch.device, float | None], Tensor]:
    def run(device: torch.device, softcap: float | None) -> Tensor:
        import liger_kernel.transformers as liger

        made: Any = getattr(liger, name)
        layer = made() if name == "LigerReLUSquared" else made(16)
        result: Tensor = layer.to(device)(_numbers(device, 2, 16))
        return result

    return run


def _gated(name: str) -> Callable[[torch.device, float | None], Tensor]:
    def run(device: torch.device, softcap: float | None) -> Tensor:
        from liger_kernel.transformers import functional

        result: Tensor = getattr(functional, name)(_numbers(device, 2, 16), _numbers(device, 2, 16))
        return result

    return run


def _fused(device: torch.device, softcap: float | None) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    targets = torch.zeros(2, dtype=torch.long, device=device)
    hidden, weight = _numbers(device, 2, 16), _numbers(device, 8, 16)
    loss: Tensor = liger_fused_linear_cross_entropy(hidden, weight, targets, reduction="sum", softcap=softcap)
    return loss


def _cross_entropy(device: torch.device, softcap: float | None) -> Tensor:
    from liger_kernel.transformers.functional import liger_cross_entropy

    targets = torch.zeros(2, dtype=torch.long, device=device)
    loss: Tensor = liger_cross_entropy(_numbers(device, 2, 8), targets, reduction="sum", softcap=softcap)
    return loss


_TRIALS: dict[str, Callable[[torch.device, float | None], Tensor]] = {
    "rope": _rope,
    "rms_norm": _module("LigerRMSNorm"),
    "layer_norm": _module("LigerLayerNorm"),
    "relu_squared": _module("LigerReLUSquared"),
    "swiglu": _gated("liger_swiglu"),
    "geglu": _gated("liger_geglu"),
    "fused_linear_cross_entropy": _fused,
    "cross_entropy": _cross_entropy,
}
