"""Applies Liger's kernels to one model, and leaves every other model of the process as it is.

Liger's own functions change a transformers module for good: its classes, which only matter to models that are built
later, and its functions, which the layers of every model look up when they run. Here the module is restored, and the
layers of this model get a ``forward`` that looks up Liger's functions.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from hooktrain_liger.compat import apply_function

__all__ = ["apply_kernels"]

Names = dict[str, Any]
_SHARED = ("torch.nn", "torch.nn.functional", "transformers.loss.loss_utils", "transformers.activations")
"""Modules that Liger changes too, besides those with a model's code."""


def apply_kernels(model: nn.Module, model_type: str, kernels: Mapping[str, bool]) -> None:
    """Replace layers of ``model``, and of no other model.

    The model keeps its own ``forward``, which returns logits: Liger's would return the mean loss of each micro-batch.

    Args:
        model: a transformers model, on any device, ``meta`` included.
        model_type: that of the config it was built from.
        kernels: which layer kernels to apply; names that Liger's function for the type has parameters for.

    Raises:
        Exception: whatever Liger raises about a model that is not as it expects.
    """
    apply = apply_function(model_type)
    parameters = inspect.signature(apply).parameters
    off = {name: False for name, p in parameters.items() if isinstance(p.default, bool)}
    with _restored_modules():
        apply(**off)  # imports the modules that it may change, so that they can be restored
    with _restored_modules() as replaced:
        apply(model=model, **{**off, **kernels})
    for module, functions in replaced.items():
        _bind(model, module, functions)


@contextmanager
def _restored_modules() -> Iterator[dict[str, Names]]:
    """Undo changes to modules at the end, and fill the yielded mapping with the new functions, by module."""
    from transformers.activations import ACT2FN

    before = {name: dict(vars(module)) for name, module in _modules()}
    activations = dict(dict.items(ACT2FN))  # its own items() would build a module for each
    replaced: dict[str, Names] = {}
    try:
        yield replaced
    finally:
        for name, module in _modules():
            for key, value in before.get(name, {}).items():
                changed = vars(module).get(key)
                if changed is not value:
                    setattr(module, key, value)
                    if inspect.isfunction(value) and callable(changed):
                        replaced.setdefault(name, {})[key] = changed
        dict.update(ACT2FN, activations)


def _modules() -> list[tuple[str, types.ModuleType]]:
    return [
        (name, module)
        for name, module in list(sys.modules.items())
        if name in _SHARED or (name.startswith("transformers.models.") and ".modeling_" in name)
    ]


def _bind(model: nn.Module, module: str, functions: Names) -> None:
    """Give the layers of ``model`` whose code is in ``module`` a ``forward`` that finds ``functions`` there."""
    names: Names = {**vars(sys.modules[module]), **functions}
    for layer in model.modules():
        forward = type(layer).forward
        if "forward" in vars(layer) or not isinstance(forward, types.FunctionType) or forward.__module__ != module:
            continue
        if functions.keys() & _names_used(forward.__code__):
            layer.forward = types.MethodType(_with_globals(forward, names), layer)


def _names_used(code: types.CodeType) -> set[str]:
    """Return the global names that a function, or one inside it, looks up."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_names_used, inner))


def _with_globals(function: types.FunctionType, names: Names) -> types.FunctionType:
    """Copy a function with other globals."""
    made = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    made.__kwdefaults__ = function.__kwdefaults__
    functools.update_wrapper(made, function)
    return made
