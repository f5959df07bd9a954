"""Float32 adapters on half-precision bases: trained in half precision, they would lose small updates."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module

from hooktrain_peft.compat import remove_forward_hooks, trained_copies

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["remove_casts", "train_in_float32"]


def train_in_float32(model: PeftModel) -> None:
    """Make every trained weight float32.

    Adapters cast their inputs. Copies of complete modules do not, and get hooks that cast inputs to float32 and outputs
    to the type of the original module's.
    """
    narrow = {id(p): p.dtype for p in model.parameters() if p.requires_grad and p.is_floating_point()}
    copies = [(module, next(module.parameters()).dtype) for module in trained_copies(model)]
    for parameter in model.parameters():
        if id(parameter) in narrow and parameter.element_size() < 4:
            parameter.data = parameter.data.float()
    for module, dtype in copies:
        if dtype in (torch.bfloat16, torch.float16):
            module.register_forward_pre_hook(_widen)
            module.register_forward_hook(partial(_narrow, dtype=dtype))


def remove_casts(module: Module) -> None:
    """Remove the hooks of :func:`train_in_float32` from a module and those inside it."""
    remove_forward_hooks(module, lambda hook: hook is _widen or (isinstance(hook, partial) and hook.func is _narrow))


def _widen(module: Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for v in inputs)


def _narrow(module: Module, inputs: Any, output: Any, dtype: torch.dtype) -> Any:
    return output.to(dtype) if isinstance(output, Tensor) and output.is_floating_point() else output
