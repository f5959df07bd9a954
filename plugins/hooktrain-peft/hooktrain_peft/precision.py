"""Trained weights in float32 on a base that is kept in half of that: less would lose small updates."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["forget_casts", "train_in_float32"]


def train_in_float32(model: PeftModel) -> None:
    """Make every trained weight float32.

    Adapters cast what they are given by themselves. Copies of whole modules do not, and get hooks that do it: their
    inputs become float32, their outputs what the module beside them would have given.
    """
    narrow = {id(p): p.dtype for p in model.parameters() if p.requires_grad and p.is_floating_point()}
    copies = [(module, next(module.parameters()).dtype) for module in _copies(model)]
    for parameter in model.parameters():
        if id(parameter) in narrow and parameter.element_size() < 4:
            parameter.data = parameter.data.float()
    for module, dtype in copies:
        if dtype in (torch.bfloat16, torch.float16):
            module.register_forward_pre_hook(_widen)
            module.register_forward_hook(partial(_narrow, dtype=dtype))


def forget_casts(module: Module) -> None:
    """Remove the hooks of :func:`train_in_float32` from a module and those inside it."""
    for inner in module.modules():
        for hooks in (inner._forward_pre_hooks, inner._forward_hooks):
            for key, hook in list(hooks.items()):
                if hook is _widen or getattr(hook, "func", None) is _narrow:
                    del hooks[key]


def _copies(model: PeftModel) -> Iterator[Module]:
    """Copies of whole modules that are trained in the place of the modules themselves."""
    from peft.tuners.ln_tuning.layer import LNTuningLayer
    from peft.utils.other import ModulesToSaveWrapper

    seen: set[int] = set()
    for module in model.modules():
        held: Any = ()
        if isinstance(module, ModulesToSaveWrapper):
            held = module.modules_to_save.values()
        elif isinstance(module, LNTuningLayer):
            held = module.ln_tuning_layers.values()
        for copy in held:
            if id(copy) not in seen and next(copy.parameters(), None) is not None:
                seen.add(id(copy))
                yield copy


def _widen(module: Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for v in inputs)


def _narrow(module: Module, inputs: Any, output: Any, dtype: torch.dtype) -> Any:
    return output.to(dtype) if isinstance(output, Tensor) and output.is_floating_point() else output
