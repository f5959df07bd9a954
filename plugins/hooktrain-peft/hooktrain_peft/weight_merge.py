"""Merges of an adapter into the weights of its base, in memory."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from hooktrain_hf import first_line
from torch import Tensor
from torch.nn import Module, Parameter

from hooktrain import ModelError
from hooktrain_peft.compat import adapted_layers, copyable, is_token_adapter, restore_parameters, ties_embeddings
from hooktrain_peft.precision import remove_casts

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

__all__ = ["copy_for_merge", "merge_adapter"]

_MAX_DIFFERENCE = 1e-4
"""Largest difference of a merged layer's outputs from its adapter's in float32, as a share of their norm."""


@torch.no_grad()
def merge_adapter(model: PeftModel) -> PreTrainedModel:
    """Merge the adapter into the base, in float32 one layer at a time, and round each weight once to its own type.

    Args:
        model: base and adapter; it cannot be used afterwards.

    Returns:
        The base as a plain transformers model. Head and embedding are no longer tied where the adapter has changed one
        of them alone.

    Raises:
        ModelError: the method does not support merging, merged weights would not be finite, or a merged layer does not
            compute what it did with its adapter.
    """
    base: Any = model.get_base_model()
    dtypes = {_own_name(name): parameter.dtype for name, parameter in base.named_parameters()}
    tied = ties_embeddings(base.config)
    remove_casts(model)
    model.eval()
    try:
        with warnings.catch_warnings():
            # PEFT warns about merged layers and about ties, which are handled here
            warnings.simplefilter("ignore")
            _untie(model)
            for name, layer in adapted_layers(model):
                _merge_layer(name, layer)
            merged: Any = model.merge_and_unload()
    except (NotImplementedError, AttributeError, ValueError, RuntimeError) as problem:
        name = type(model.active_peft_config).__name__.removesuffix("Config")
        raise ModelError(
            f"peft: {name} cannot be merged into a {type(base).__name__} ({first_line(problem)}); use the adapter"
            " together with its base"
        ) from problem
    for name, parameter in merged.named_parameters():
        if name in dtypes and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtypes[name])
    if tied:
        head, embedding = merged.get_output_embeddings(), merged.get_input_embeddings()
        one = head is not None and head.weight.data_ptr() == embedding.weight.data_ptr()
        merged.config.get_text_config().tie_word_embeddings = merged.config.tie_word_embeddings = one
    return merged  # type: ignore[no-any-return]


def copy_for_merge(model: PeftModel, weights: Mapping[str, Tensor]) -> PeftModel:
    """Copy a model to the host, so that the copy can be merged and the model itself trained further.

    Only the weights that merging changes are copied; the others are shared with ``weights``.

    Args:
        model: base and adapter; it is not changed.
        weights: its weights, complete, on the host.
    """
    memo: dict[int, Any] = {}
    named = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    for name, tensor in named:
        if id(tensor) not in memo:
            held = weights.get(name, tensor).detach().cpu()
            memo[id(tensor)] = Parameter(held, requires_grad=False) if isinstance(tensor, Parameter) else held
    with copyable(model, memo):
        made = copy.deepcopy(model, memo)
    restore_parameters(made)
    adapted = {id(p): p for _, layer in adapted_layers(made) for p in layer.get_base_layer().parameters()}
    for parameter in adapted.values():
        parameter.data = parameter.data.clone()
    return made


def _merge_layer(name: str, layer: Any) -> None:
    """Merge one layer, and check that it computes the same as before."""
    held = layer.get_base_layer()
    with _in_float32(held):
        probe = _probe(held)
        expected = None if probe is None else layer(probe)
        layer.merge(safe_merge=True)
        found = None if probe is None else layer.get_base_layer()(probe)
        if expected is not None and not float((found - expected).norm()) <= _MAX_DIFFERENCE * float(expected.norm()):
            raise ValueError(f"with merged weights {name} does not compute what it did with its adapter")
    layer.merge = _merge_nothing  # PEFT merges once more when it unloads, and not every method notices


def _merge_nothing(*arguments: Any, **more: Any) -> None:
    """Stand in for the ``merge`` of a layer that is merged already."""


def _probe(module: Module) -> Tensor | None:
    """Return inputs for a linear or embedding layer, without touching the run's random numbers; None for others."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(module, torch.nn.Linear):
        return torch.randn(1, 8, module.in_features, generator=generator).to(module.weight.device)
    if isinstance(module, torch.nn.Embedding):
        return torch.randint(0, module.num_embeddings, (1, 64), generator=generator).to(module.weight.device)
    return None


def _untie(model: Module) -> None:
    """Give each adapted layer a weight of its own, lest merging into the head change the embedding.

    Adapters of single tokens are the exception: they adapt both.
    """
    uses = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    for _, layer in adapted_layers(model):
        if is_token_adapter(layer):
            continue
        held: Module = layer.get_base_layer()
        for name, parameter in list(held.named_parameters(recurse=False, remove_duplicate=False)):
            if uses[id(parameter)] > 1:
                setattr(held, name, Parameter(parameter.detach().clone(), requires_grad=False))


@contextmanager
def _in_float32(module: Module) -> Iterator[None]:
    """Widen a module's half-precision weights to float32 inside the block."""
    narrow = [(p, p.dtype) for p in module.parameters() if p.dtype in (torch.bfloat16, torch.float16)]
    for parameter, _ in narrow:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in narrow:
            parameter.data = parameter.data.to(dtype)


def _own_name(name: str) -> str:
    """Return the name of a wrapped base's weight in the base itself."""
    return ".".join(part for part in name.split(".") if part not in ("base_layer", "original_module"))
