"""The memory that a model's activations would take, for ``hooktrain plan``."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hooktrain import ConfigDefaults, member
from hooktrain_hf.block_settings import kept_operators
from hooktrain_hf.compat import (
    checkpointed_blocks,
    decoder_of,
    native_bf16,
    operators_named,
    set_attention_implementation,
    unwrap_adapters,
)
from hooktrain_hf.quantized_layers import unpacked_numbers
from hooktrain_hf.tiled_mlp import tiles_of

if TYPE_CHECKING:
    from hooktrain import Recipe

__all__ = ["estimate_activations"]

_ATTENTION = "hooktrain_meta"


class _Attention(torch.autograd.Function):
    """Attention that keeps what fused kernels keep: inputs and output, and no scores of tokens by tokens."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # (sequences, heads, tokens, channels)
        made = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, made)
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


class _Noted:
    """Memory that the forward pass of a meta model would keep; storages are counted once.

    Args:
        model: its weights are not counted.
        operators: those whose results checkpointed blocks keep.
    """

    def __init__(self, model: nn.Module, operators: Collection[Any]) -> None:
        self._kept: dict[int, tuple[Any, int]] = {}  # with the storage itself, lest its id be used again
        self._weights = {id(weight.untyped_storage()) for weight in model.parameters()}
        self._operators = operators
        self.bytes = 0

    def note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in self._kept and id(storage) not in self._weights:
            self._kept[id(storage)] = storage, storage.nbytes()
            self.bytes += storage.nbytes()
        return tensor

    @contextmanager
    def noting(self, dtype: torch.dtype | None) -> Iterator[None]:
        """Note inside the block what autograd saves, in the precision of ``dtype``, and what operators return."""
        with (
            torch.autograd.graph.saved_tensors_hooks(self.note, lambda tensor: tensor),
            torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None),
            _Results(self, self._operators),
        ):
            yield

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        made: Any = _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]
        if self._operators:
            self.note(made)
        return made.transpose(1, 2), None


class _Results(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes what some operators return."""

    def __init__(self, noted: _Noted, operators: Collection[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._noted, self._operators = noted, frozenset(operators)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in self._operators and isinstance(made, Tensor):
            self._noted.note(made)
        return made


def estimate_activations(recipe: Recipe, model: Any, sequences: int, tokens: int) -> Mapping[str, int]:
    """Estimate the bytes that the decoder keeps for the backward pass of a micro-batch, in the strategy's precision.

    Everything that autograd saves is counted once, weights excepted; copies of weights in the precision of the
    computation are included. Where blocks recompute theirs, those of the largest block, and of an MLP's tile, come on
    top. An attention that keeps scores of tokens by tokens (eager) takes more; compiled blocks keep less.
    """
    dtype = _computed_in(recipe)
    decoder = decoder_of(unwrap_adapters(model))
    set_attention_implementation(decoder, _ATTENTION)
    ids = torch.zeros(sequences, tokens, dtype=torch.long)
    kept = [one for name in kept_operators(recipe.model.activation_checkpointing) for one in operators_named(name)]
    noted, _ = _noted_in(model, decoder, ids, dtype, kept)
    made = {"activations": noted.bytes}
    recomputing: list[Any] = [
        block for block, _ in checkpointed_blocks(decoder) if vars(block).get("gradient_checkpointing")
    ]
    if recomputing:
        for block in recomputing:
            block.gradient_checkpointing = False
        _, found = _noted_in(model, decoder, ids, dtype, (), recomputing)
        shared = noted.bytes // len(recomputing) if kept else 0  # of which the block has its results already
        made["activations of a block"] = max(0, max(found.values(), default=0) - shared)
    if tiled := tiles_of(decoder):
        tile = ids.flatten()[None, : min(tiled[0].forward.tile, ids.numel())]
        _, found = _noted_in(model, decoder, tile, dtype, (), tiled)
        made["activations of a tile"] = max(found.values(), default=0)
    for block in recomputing:
        block.gradient_checkpointing = True
    if unpacked := unpacked_numbers(model):
        made["unpacked weights"] = unpacked * (4 if dtype is None else 2)
    return made


def _computed_in(recipe: Recipe) -> torch.dtype | None:
    """Return the half precision of the computation; None for float32."""
    name = member(recipe.model, ConfigDefaults, "dtype")
    name = member(recipe.strategy, ConfigDefaults, "dtype") if name == "auto" else name
    if name == "auto":
        device = str(member(recipe.strategy, ConfigDefaults, "device"))
        cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
        name = "bf16" if cuda or native_bf16() else "fp32"
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(str(name))


def _noted_in(
    model: Any,
    decoder: Any,
    ids: Tensor,
    dtype: torch.dtype | None,
    operators: Collection[Any],
    modules: Collection[nn.Module] = (),
) -> tuple[_Noted, Mapping[nn.Module, int]]:
    """Run the decoder; return what it keeps, and how much of it each of some modules does."""
    from transformers import AttentionInterface

    noted, found = _Noted(model, operators), dict.fromkeys(modules, 0)

    def begin(module: nn.Module, *_: Any) -> None:
        found[module] -= noted.bytes

    def end(module: nn.Module, *_: Any) -> None:
        found[module] += noted.bytes

    AttentionInterface.register(_ATTENTION, noted.attend)
    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_pre_hook(begin).remove)
            hooks.callback(module.register_forward_hook(end).remove)
        with noted.noting(dtype):
            decoder(input_ids=ids, attention_mask=None, use_cache=False)
    return noted, found
