"""Documents of a sequence side by side, padded and masked, for models that cannot keep them apart in a sequence."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from hooktrain_sft.compat import decoder_of

__all__ = ["are_padded", "documents_given", "pad_documents"]

_DOCUMENT_KEYS = ("document_lengths", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
_BY_TOKEN = ("last_hidden_state", "logits")
"""Outputs of shape (sequences, tokens, channels)."""

_given: ContextVar[Sequence[int] | None] = ContextVar("document_lengths", default=None)
_padded: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@contextmanager
def documents_given(batch: Mapping[str, Any]) -> Iterator[None]:
    """Keep the lengths of a batch's documents for the time of a model's call, for models that do not take them."""
    before = _given.set(batch.get("document_lengths"))
    try:
        yield
    finally:
        _given.reset(before)


def pad_documents(model: nn.Module) -> None:
    """Make a model compute each document in a sequence of its own, from now on.

    What the decoder is given as sequences of several documents becomes one document in each sequence, padded on the
    right, with positions from 0 and, where the model takes one, a mask. Its output has the shape that it had before.

    Args:
        model: the innermost model.
    """
    decoder = decoder_of(model)
    if decoder in _padded:
        return
    _padded.add(decoder)
    hooks = _Padding(decoder)
    decoder.register_forward_pre_hook(hooks.before, prepend=True, with_kwargs=True)
    decoder.register_forward_hook(hooks.after)


def are_padded(model: nn.Module) -> bool:
    """Return whether :func:`pad_documents` has been called for the innermost model."""
    return decoder_of(model) in _padded


class _Padding:
    """A forward pre-hook and a forward hook of a decoder."""

    def __init__(self, decoder: Any) -> None:
        parameters = inspect.signature(decoder.forward).parameters
        self._names = list(parameters)
        self._any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        self._places: tuple[Tensor, torch.Size] | None = None

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._places = None
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        lengths = given.get("document_lengths") or _given.get()
        tokens = next((given[n] for n in ("input_ids", "inputs_embeds") if isinstance(given.get(n), Tensor)), None)
        if tokens is None or lengths is None or sum(lengths) != tokens.shape[:2].numel():
            return None
        shape = tokens.shape[:2]  # (sequences, tokens)
        padded, back = _layout(lengths, tokens.device)  # (documents, longest), (sequences * tokens,)
        made = {
            name: value.flatten(0, 1)[padded] if isinstance(value, Tensor) and value.shape[:2] == shape else value
            for name, value in given.items()
            if name not in _DOCUMENT_KEYS
        }
        own: dict[str, Any] = {
            "position_ids": torch.arange(padded.shape[1], device=tokens.device).expand(padded.shape),
            "attention_mask": torch.zeros_like(padded).flatten().index_fill_(0, back, 1).view(padded.shape),
        }
        made |= {name: value for name, value in own.items() if name in self._names or (self._any and name in made)}
        self._places = back, shape
        return (), made

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self._places is None:
            return None
        (back, shape), self._places = self._places, None

        def unpadded(value: Tensor) -> Tensor:
            flat = value if value.dim() == 2 else value.flatten(0, 1)  # (documents * longest, channels)
            chosen = flat.index_select(0, back)
            return chosen if value.dim() == 2 else chosen.view(*shape, -1)

        if isinstance(output, Tensor):
            return unpadded(output)
        if isinstance(output, tuple):
            return (unpadded(output[0]), *output[1:])
        for name in _BY_TOKEN:
            if isinstance(output.get(name), Tensor):
                output[name] = unpadded(output[name])
        if isinstance(routed := output.get("router_logits"), tuple):  # else padding would count as tokens of experts
            output["router_logits"] = tuple(
                unpadded(one) if isinstance(one, Tensor) and one.dim() in (2, 3) else one for one in routed
            )
        return output


def _layout(lengths: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the place of each padded position in the sequences, and that of each token among the padded positions."""
    sizes = torch.tensor(lengths, device="cpu")
    begins = sizes.cumsum(0) - sizes
    place = torch.arange(int(sizes.max()), device="cpu")
    real = place < sizes[:, None]  # (documents, longest)
    padded = torch.where(real, begins[:, None] + place, 0)
    back = real.flatten().nonzero()[:, 0]
    return padded.to(device, non_blocking=True), back.to(device, non_blocking=True)
