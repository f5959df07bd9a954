"""Checks that Triton and each of Liger's kernels run on the model's device, before weights are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hooktrain import ModelError
from hooktrain_liger.compat import interpreting

__all__ = ["device_for", "failure_of"]

_INSTEAD = "write type: huggingface, whose layers and loss run everywhere"


def device_for(wanted: str) -> torch.device:
    """Return the device that Liger's kernels will run on.

    Args:
        wanted: ``device`` of the recipe's strategy, or ``auto``.

    Raises:
        ModelError: when Liger or Triton is not installed, or Triton has no device to compile for.
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
    """Run a kernel forward and backward on a few numbers, and return the exception that it raised, or None.

    Without a C compiler or a matching driver, Triton fails only when it is first used: deep in the first step, after
    the weights have been loaded.

    Args:
        kernel: its name in the recipe.
        device: from ``device_for``.
        softcap: for ``fused_linear_cross_entropy`` and ``cross_entropy``, that of the model.
    """
    try:
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            _run(kernel, device, softcap).sum().backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # compilers, drivers and the interpreter each raise kinds of their own
        return error
    return None


def _run(kernel: str, device: torch.device, softcap: float | None) -> Tensor:
    """Run a kernel on a few numbers, and return its result."""
    import liger_kernel.transformers as liger
    from liger_kernel.transformers import functional

    def numbers(*shape: int) -> Tensor:
        return torch.ones(shape, device=device, requires_grad=True) * 0.5  # kernels may write into their inputs

    angles, targets = torch.ones(1, 4, 16, device=device), torch.zeros(2, dtype=torch.long, device=device)
    loss: dict[str, Any] = {"reduction": "sum", "softcap": softcap}
    calls: dict[str, Callable[[], Tensor]] = {
        "rope": lambda: functional.liger_rope(numbers(1, 2, 4, 16), numbers(1, 1, 4, 16), angles, angles)[0],
        "rms_norm": lambda: liger.LigerRMSNorm(16).to(device)(numbers(2, 16)),
        "layer_norm": lambda: liger.LigerLayerNorm(16).to(device)(numbers(2, 16)),
        "relu_squared": lambda: liger.LigerReLUSquared()(numbers(2, 16)),
        "swiglu": lambda: functional.liger_swiglu(numbers(2, 16), numbers(2, 16)),
        "geglu": lambda: functional.liger_geglu(numbers(2, 16), numbers(2, 16)),
        "fused_linear_cross_entropy": lambda: functional.liger_fused_linear_cross_entropy(
            numbers(2, 16), numbers(8, 16), targets, **loss
        ),
        "cross_entropy": lambda: functional.liger_cross_entropy(numbers(2, 8), targets, **loss),
    }
    return calls[kernel]()
