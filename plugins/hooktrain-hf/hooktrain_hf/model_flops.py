"""Floating-point operations that a step of a transformers model needs, from the shapes of its weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs
from torch import Tensor, nn

from hooktrain_hf.compat import complete_shape

__all__ = ["ModelFlops"]

_NO_ATTENTION = ("linear_attention", "mamba", "conv", "recurrent", "mlp", "moe")
"""Kinds of layers, as ``layer_types`` of a config says them, whose cost does not grow with the document."""


@attrs.frozen(kw_only=True)
class ModelFlops:
    """Operations of a forward and a backward pass, a multiplication with its addition as two.

    What is recomputed (activation checkpointing) does not count, nor do norms and activations. Gradients of frozen
    weights do not count, and gradients of inputs only behind the first trainable weight.

    Attributes:
        token: for each token, the head apart.
        target: for each token that goes through the head, that is each trained one.
        pair: for each pair of tokens that attends, by the width of the window; 0 is the complete document.
    """

    token: float
    target: float
    pair: Mapping[int, float]

    @classmethod
    def of(cls, model: Any) -> ModelFlops:
        """Read the shapes of a transformers model, with or without an adapter."""
        config = model.config.get_text_config()
        head = model.get_output_embeddings()
        of_head = {id(parameter) for parameter in head.parameters()} if head is not None else set()
        share = _active_experts(config)
        body = [
            (module, _layer(name), parameter)
            for name, module in model.named_modules()
            for parameter in module.parameters(recurse=False)
            if ".original_module" not in f".{name}"  # which PEFT keeps beside the copy that is trained
            and (isinstance(module, nn.Embedding) or id(parameter) not in of_head)
        ]
        norms = {layer for _, layer, parameter in body if parameter.requires_grad and parameter.dim() < 2}
        token, trains = 0.0, False
        for module, layer, parameter in body:
            trains |= layer in norms  # a layer's norm is registered behind the weights that it precedes
            if not isinstance(module, nn.Embedding):
                token += _of_weight(parameter, trains, share)
            trains |= parameter.requires_grad
        target = sum(_of_weight(parameter, trains, {}) for parameter in head.parameters()) if head is not None else 0.0
        first = min((layer for _, layer, parameter in body if parameter.requires_grad), default=None)
        return cls(token=token, target=target, pair=dict(_attention(config, first)))

    def count(self, tokens: int, targets: int, documents: Iterable[int]) -> float:
        """Operations for micro-batches.

        Args:
            tokens: without padding.
            targets: trained tokens.
            documents: the length of each, in tokens.
        """
        lengths = list(documents)
        attention = sum(cost * sum(_pairs(each, width) for each in lengths) for width, cost in self.pair.items())
        return self.token * tokens + self.target * targets + attention


def _of_weight(parameter: Tensor, input_grad: bool, share: Mapping[int, float]) -> float:
    shape = complete_shape(parameter)
    if len(shape) < 2:
        return 0.0
    size = 1
    for each in shape:
        size *= each
    active = share.get(shape[0], 1.0) if len(shape) == 3 else 1.0
    return 2.0 * size * active * (1 + input_grad + parameter.requires_grad)


def _active_experts(config: Any) -> dict[int, float]:
    """The share of experts that a token goes through, by their number, which is the first size of their weights."""
    values = config.to_dict()
    chosen = values.get("num_experts_per_tok") or values.get("moe_topk") or values.get("moe_k")
    numbers = (values.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"))
    return {int(number): chosen / number for number in numbers if number and chosen}


def _layer(name: str) -> int:
    """The number of the layer that a weight belongs to; -1 before the first."""
    found = re.search(r"\.(\d+)\.", f"{name}.")
    return int(found[1]) if found else -1


def _attention(config: Any, first: int | None) -> Iterator[tuple[int, float]]:
    """Yield operations for a pair of tokens, summed over the layers with windows of one width."""
    values = config.to_dict()
    heads, layers = values.get("num_attention_heads"), values.get("num_hidden_layers")
    if not heads or not layers:
        return
    width = values.get("head_dim") or values["hidden_size"] // heads
    keys = (values.get("qk_nope_head_dim") or 0) + (values.get("qk_rope_head_dim") or 0) or width
    kinds = values.get("layer_types") or ["full_attention"] * layers
    costs: dict[int, float] = {}
    for layer, kind in enumerate(kinds):
        if not any(word in kind for word in _NO_ATTENTION):
            window = (values.get("sliding_window") or 0) if "sliding" in kind or "layer_types" not in values else 0
            trained = first is not None and first <= layer
            cost = 2.0 * heads * (keys + (values.get("v_head_dim") or width)) * (3 if trained else 1)
            costs[window] = costs.get(window, 0.0) + cost
    yield from costs.items()


def _pairs(tokens: int, window: int) -> float:
    """Pairs of a token with itself and each earlier one that it sees."""
    if not window or tokens <= window:
        return tokens * (tokens + 1) / 2
    return window * (window + 1) / 2 + (tokens - window) * window
