"""Adding what an adapter has learned to the weights of its base."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from hooktrain_hf.location import first_line
from torch import Tensor
from torch.nn import Module, Parameter

from hooktrain import ModelError
from hooktrain_peft.precision import forget_casts

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

__all__ = ["merge", "private_copy"]

_TOLERANCE = 1e-4
"""How far a merged layer's outputs may be from its adapter's in float32, as a share of their norm."""


@torch.no_grad()
def merge(model: PeftModel) -> PreTrainedModel:
    """Merge the adapter into the base, in float32 a layer at a time, each weight then rounded once to its own type.

    Args:
        model: base and adapter; it is used up.

    Returns:
        The base, whole and without any trace of PEFT. Head and embedding are no longer tied where the adapter has
        changed one of them alone.

    Raises:
        ModelError: the method has no such thing as merged weights, they would not be finite, or a layer with merged
            weights does not compute what it did with its adapter.
    """
    base: Any = model.get_base_model()
    dtypes = {_own_name(name): parameter.dtype for name, parameter in base.named_parameters()}
    tied = bool(getattr(base.config.get_text_config(), "tie_word_embeddings", False))
    forget_casts(model)
    model.eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of merging what is merged already, and of ties that are seen to here
            _untie(model)
            for name, layer in _tuned(model):
                _merge_layer(name, layer)
            merged: Any = model.merge_and_unload()
    except (NotImplementedError, AttributeError, ValueError, RuntimeError) as problem:
        name = type(model.active_peft_config).__name__.removesuffix("Config")
        raise ModelError(
            f"peft: {name} cannot be merged into a {type(base).__name__} ({first_line(problem)}); use the adapter as it"
            " is, beside its base"
        ) from problem
    for name, parameter in merged.named_parameters():
        if name in dtypes and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtypes[name])
    if tied:
        head, embedding = merged.get_output_embeddings(), merged.get_input_embeddings()
        one = head is not None and head.weight.data_ptr() == embedding.weight.data_ptr()
        merged.config.get_text_config().tie_word_embeddings = merged.config.tie_word_embeddings = one
    return merged  # type: ignore[no-any-return]


def private_copy(model: PeftModel, weights: Mapping[str, Tensor]) -> PeftModel:
    """A copy of a model on the host that can be merged while the model itself goes on training.

    Only the weights that merging changes are copied; the rest is shared with ``weights``.

    Args:
        model: base and adapter; it is not changed.
        weights: its weights, whole, on the host.
    """
    memo: dict[int, Any] = {}
    named = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    for name, tensor in named:
        if id(tensor) not in memo:
            held = weights.get(name, tensor).detach().cpu()
            memo[id(tensor)] = Parameter(held, requires_grad=False) if isinstance(tensor, Parameter) else held
    with _as_alone(model, memo):
        made = copy.deepcopy(model, memo)
    for module in made.modules():  # ZeRO puts a mapping here that asks weights where they are
        module._parameters = dict(dict.items(module._parameters))
    for parameter in {id(p): p for _, layer in _tuned(made) for p in layer.get_base_layer().parameters()}.values():
        parameter.data = parameter.data.clone()
    return made


@contextmanager
def _as_alone(model: Module, memo: dict[int, Any]) -> Iterator[None]:
    """Have copies of a model's modules without what fetches weights from other ranks: in a copy they are whole.

    FSDP2 refuses copies, through the class that it gives a module for the original one; ZeRO and FSDP2 hang on hooks.
    """
    from torch.distributed.fsdp import FSDPModule

    spread = {module: type(module) for module in model.modules() if isinstance(module, FSDPModule)}
    for module in model.modules():
        for name, held in vars(module).items():
            if isinstance(held, dict) and (name.endswith("_hooks") or name.startswith("__composable_api")):
                kept = [(key, value) for key, value in held.items() if not _is_of_ranks(value)]
                if len(kept) < len(held):
                    memo[id(held)] = type(held)(kept)
    try:
        for module, made in spread.items():
            module.__class__ = made.__mro__[2]
        yield
    finally:
        for module, made in spread.items():
            module.__class__ = made


def _is_of_ranks(held: Any) -> bool:
    """Whether a hook, or what is kept beside hooks, belongs to what spreads weights over ranks."""
    named = inspect.unwrap(getattr(held, "func", held))
    return (getattr(named, "__module__", None) or "").startswith(("deepspeed.", "torch.distributed."))


def _tuned(model: Module) -> list[tuple[str, Any]]:
    """The layers that hold a part of the base and its adapter, and their names."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]


def _merge_layer(name: str, layer: Any) -> None:
    """Merge one layer, and make sure that it goes on computing the same."""
    held = layer.get_base_layer()
    with _in_float32(held):
        probe = _probe(held)
        expected = None if probe is None else layer(probe)
        layer.merge(safe_merge=True)
        found = None if probe is None else layer.get_base_layer()(probe)
        if expected is not None and not float((found - expected).norm()) <= _TOLERANCE * float(expected.norm()):
            raise ValueError(f"with merged weights {name} does not compute what it did with its adapter")
    layer.merge = _done  # PEFT merges once more when it unloads, and not every method notices


def _done(*arguments: Any, **more: Any) -> None:
    """In the place of a merge that has happened."""


def _probe(module: Module) -> Tensor | None:
    """Inputs for a layer of a common kind, without touching the run's random numbers."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(module, torch.nn.Linear):
        return torch.randn(1, 8, module.in_features, generator=generator).to(module.weight.device)
    if isinstance(module, torch.nn.Embedding):
        return torch.randint(0, module.num_embeddings, (1, 64), generator=generator).to(module.weight.device)
    return None


def _untie(model: Module) -> None:
    """Give each adapted layer a weight of its own, lest merging into the head change the embedding.

    Trained tokens are the exception: theirs is an adapter of both.
    """
    from peft.tuners.trainable_tokens.layer import TrainableTokensLayer

    seen: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                seen[id(parameter)] = seen.get(id(parameter), 0) + 1
    for _, layer in _tuned(model):
        if isinstance(layer, TrainableTokensLayer):
            continue
        held: Module = layer.get_base_layer()
        for name, parameter in list(held._parameters.items()):
            if parameter is not None and seen.get(id(parameter), 0) > 1:
                setattr(held, name, Parameter(parameter.detach().clone(), requires_grad=False))


@contextmanager
def _in_float32(module: Module) -> Iterator[None]:
    """For the time of the block, narrow weights of a module are float32."""
    narrow = [(p, p.dtype) for p in module.parameters() if p.dtype in (torch.bfloat16, torch.float16)]
    for parameter, _ in narrow:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in narrow:
            parameter.data = parameter.data.to(dtype)


def _own_name(name: str) -> str:
    """The name that a weight of the wrapped base has in the base itself."""
    return ".".join(part for part in name.split(".") if part not in ("base_layer", "original_module"))
