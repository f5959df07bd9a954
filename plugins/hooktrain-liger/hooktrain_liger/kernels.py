"""Giving one model Liger's kernels, and leaving every other model of the process as it is.

Liger's own functions change a transformers module for good: classes, which only matter to models that are built later,
and functions, which the layers of every model look up when they run. Here the module is put back, and the layers of
this model get a ``forward`` that looks up Liger's functions.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["apply_function", "apply_kernels", "supported_types"]

Names = dict[str, Any]
_SHARED = ("torch.nn", "torch.nn.functional", "transformers.loss.loss_utils", "transformers.activations")
"""Modules that Liger changes too, besides those with a model's code."""


def supported_types() -> list[str]:
    """The ``model_type`` of every causal language model that this version of Liger has kernels for, sorted."""
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(set(MODEL_TYPE_TO_APPLY_LIGER_FN) & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))


def apply_function(model_type: str) -> Callable[..., None]:
    """Liger's own function for one of the ``supported_types``."""
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    function: Callable[..., None] = MODEL_TYPE_TO_APPLY_LIGER_FN[model_type]
    return function


def apply_kernels(model: nn.Module, model_type: str, kernels: Mapping[str, bool]) -> None:
    """Replace layers of ``model``, and of no other.

    Its ``forward`` stays, and with it the logits: Liger's own would return the mean of each micro-batch.

    Args:
        model: a transformers model, on any device, ``meta`` included.
        model_type: that of the config it was built from.
        kernels: which layer kernels to apply; names that Liger's function for the type has parameters for.

    Raises:
        Exception: whatever Liger raises about a model that is not as it expects.
    """
    apply = apply_function(model_type)
    parameters = inspect.signature(apply).parameters
    nothing = {name: False for name, p in parameters.items() if isinstance(p.default, bool)}
    with _put_back():
        apply(**nothing)  # imports what it may change, so that the next lines know what it was
    with _put_back() as replaced:
        apply(model=model, **{**nothing, **kernels})
    for module, functions in replaced.items():
        _look_up(model, module, functions)


@contextmanager
def _put_back() -> Iterator[dict[str, Names]]:
    """Undo changes to modules; afterwards what was yielded holds the functions that had been replaced, by module."""
    from transformers.activations import ACT2FN

    before = {name: dict(vars(module)) for name, module in _modules()}
    activations = dict(dict.items(ACT2FN))  # its own items() would make a module of each
    replaced: dict[str, Names] = {}
    try:
        yield replaced
    finally:
        for name, module in _modules():
            for key, value in before.get(name, {}).items():
                changed = vars(module).get(key)
                if changed is value:
                    continue
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


def _look_up(model: nn.Module, module: str, functions: Names) -> None:
    """Let the layers of ``model`` whose code stands in ``module`` find ``functions`` there."""
    names: Names = {**vars(sys.modules[module]), **functions}
    copies: dict[types.FunctionType, types.FunctionType] = {}
    for layer in model.modules():
        forward = type(layer).forward
        if "forward" in vars(layer) or not isinstance(forward, types.FunctionType) or forward.__module__ != module:
            continue
        if not functions.keys() & _names_used(forward.__code__):
            continue
        if forward not in copies:
            copies[forward] = _with_globals(forward, names)
        layer.forward = types.MethodType(copies[forward], layer)


def _names_used(code: types.CodeType) -> set[str]:
    """Global names that a function, or one inside it, looks up."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_names_used, inner))


def _with_globals(function: types.FunctionType, names: Names) -> types.FunctionType:
    made = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    made.__kwdefaults__, made.__dict__, made.__doc__ = function.__kwdefaults__, function.__dict__, function.__doc__
    made.__annotations__, made.__qualname__ = function.__annotations__, function.__qualname__
    return made
