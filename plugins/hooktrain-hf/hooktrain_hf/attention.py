"""Packed and padding-free batches in transformers: the attention implementation ``documents``.

transformers learns from position ids where documents begin, which waits for the device, and then builds a mask of
tokens by tokens. Here the batch says how long its documents are: hooks of the decoder note that for the time of its
forward, the mask function answers with a description instead of a mask, and the attention function computes documents
one by one. Without lengths (generation, padded batches, compiled models) all of it is transformers' own sdpa or eager.
"""

from __future__ import annotations

import functools
import inspect
import logging
import re
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from hooktrain import ModelError
from hooktrain_hf.document_attention import Documents, Scores, Visible, attend
from hooktrain_hf.location import first_line

__all__ = ["NAME", "choose", "install", "obstacle"]

logger = logging.getLogger(__name__)

NAME = "documents"
"""What transformers' registries call it. Where a model has no sdpa it is ``documents_eager``."""

_KERNEL_KEYS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
_KEYS = ("document_lengths", "sequence_parallel", *_KERNEL_KEYS)

_RECURRENT = re.compile(r"linear|mamba|recurrent|conv|hybrid|compressed")
"""Kinds of layers that carry a state from token to token, or pool over tokens, whatever the mask says."""


def install(model: Any, implementation: str) -> None:
    """Let a transformers model make use of the lengths of documents.

    Args:
        model: loaded with transformers' own choice of attention where ``implementation`` is ``auto`` or ``documents``.
        implementation: what the recipe asks for.

    Raises:
        ModelError: ``documents`` was asked for, but the model cannot have it.
    """
    decoder, name = _decoder(model), type(model).__name__
    if kind := _recurrent_kind(decoder):
        for module in {model, decoder}:
            module.register_forward_pre_hook(_RefuseDocuments(name, kind), with_kwargs=True)
    reason = ""
    if implementation in ("auto", NAME):
        if why := obstacle(decoder):
            reason = f"{name} {why}"
            if implementation == NAME:
                raise ModelError(f"model.attn_implementation: given '{NAME}', but {reason}; write auto or sdpa")
        else:
            decoder.set_attn_implementation(_register(decoder.config._attn_implementation))
    parameters = _parameters(decoder)
    if parameters is None or "use_cache" in parameters:
        decoder.register_forward_pre_hook(_keep_no_cache, with_kwargs=True)
    decoder.register_forward_pre_hook(_TakeDocuments(parameters, reason), with_kwargs=True)
    decoder.register_forward_hook(_forget_documents, always_call=True)


def choose(model: Any, implementation: str) -> None:
    """Let a model that was built elsewhere, and perhaps trained here before, make use of the lengths of documents.

    Args:
        model: with the attention that it was loaded with.
        implementation: what the recipe asks for; ``auto`` keeps to the model's own.

    Raises:
        ModelError: the model cannot have it.
    """
    decoder = _decoder(model)
    hooks = decoder._forward_pre_hooks.values()
    installed = any(isinstance(hook, _TakeDocuments) for hook in hooks)
    if installed and implementation in ("auto", str(getattr(decoder.config, "_attn_implementation", ""))):
        return
    if implementation not in ("auto", NAME):
        try:
            decoder.set_attn_implementation(implementation)
        except (ValueError, ImportError, RuntimeError, AttributeError) as error:
            raise ModelError(
                f"model.attn_implementation: given '{implementation}', which a {type(model).__name__} cannot have"
                f" ({first_line(error)}); write auto, or sdpa or eager"
            ) from error
    if not installed:
        install(model, implementation)


def obstacle(decoder: Any) -> str:
    """Why a model's attention cannot be computed document by document; nothing where it can."""
    kind = type(decoder)
    base = getattr(getattr(decoder, "config", None), "_attn_implementation", None)
    module = sys.modules.get(kind.__module__)
    if not getattr(kind, "_supports_attention_backend", False) or base not in ("sdpa", "eager"):
        return "does not use transformers' attention interface"
    # what a kernel without masks can compute is told by arguments; the rest needs the mask itself
    if not getattr(kind, "_supports_flash_attn", False):
        return "needs its attention mask in full"
    try:
        source = inspect.getsource(module) if module is not None else ""
    except (OSError, TypeError):
        source = ""
    if not source or re.search(r"_attn_implementation\b[^\n]*\bsdpa\b", source):
        return "treats sdpa in a way of its own"
    if base == "eager" and not hasattr(module, "eager_attention_forward"):
        return "has an attention of its own"
    return ""


def _decoder(model: Any) -> Any:
    """The part whose forward the LM head follows; a model's own ``decoder`` may also be a layer of its head."""
    get = getattr(model, "get_decoder", None)
    found = get() if callable(get) else None
    if not hasattr(found, "config"):
        found = getattr(model, "base_model", None)
    return found if isinstance(found, nn.Module) else model


def _recurrent_kind(decoder: Any) -> str:
    """The kind of layer that would carry something from one document into the next; nothing where there is none."""
    kinds = getattr(getattr(decoder, "config", None), "layer_types", None)
    found = next((kind for kind in kinds or () if _RECURRENT.search(kind)), "")
    if not found and not kinds and getattr(type(decoder), "_is_stateful", False):
        found = "recurrent"
    if not found and any(isinstance(m, nn.Conv1d) and m.kernel_size[0] > 1 for m in decoder.modules()):
        found = "convolution"
    return found


def _parameters(decoder: Any) -> frozenset[str] | None:
    """Names that the decoder's ``forward`` takes; None where it takes any."""
    parameters = inspect.signature(decoder.forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return frozenset(parameters)


class _RefuseDocuments:
    """A forward pre-hook for models in which documents of a row would see each other."""

    def __init__(self, model: str, kind: str) -> None:
        self.model, self.kind = model, kind

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        lengths, given = kwargs.get("document_lengths"), _inputs(args, kwargs)
        if lengths is not None and given is not None and len(lengths) > len(given):
            raise ModelError(
                f"batch: given {len(lengths)} documents in {len(given)} row(s), but the layers of kind '{self.kind}' of"
                f" {self.model} carry what they have read from one document into the next; expected one in each row;"
                " set data.pack_samples to false and micro_batch_size to 1, with gradient_accumulation_steps in its"
                " place"
            )


_documents: ContextVar[Documents | None] = ContextVar("documents", default=None)
"""Those of the decoder that is running."""


def _forget_documents(*args: Any) -> None:
    _documents.set(None)


def _keep_no_cache(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A forward pre-hook: where nobody says whether to keep keys and values, they are not kept.

    transformers keeps them unless told otherwise, and then does not look for documents that share a row: a loss that
    calls the model with ids and positions alone would let them see each other. Generating always says so.
    """
    if kwargs.get("use_cache") is None and kwargs.get("past_key_values") is None:
        return args, {**kwargs, "use_cache": False}
    return None


class _TakeDocuments:
    """A forward pre-hook that takes the lengths of documents out of the arguments and notes them.

    It stands on the decoder, since adapters call the ``forward`` of what is around it directly.
    """

    def __init__(self, parameters: frozenset[str] | None, obstacle: str) -> None:
        self.parameters, self.obstacle = parameters, obstacle

    def __call__(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        lengths = kwargs.get("document_lengths")
        if lengths is None:
            return None
        taken = {name: kwargs[name] for name in _KERNEL_KEYS if name in kwargs}
        ranks = kwargs.get("sequence_parallel")
        kwargs = {name: value for name, value in kwargs.items() if name not in _KEYS}
        implementation = str(getattr(getattr(module, "config", None), "_attn_implementation", ""))
        if ranks is not None and (not implementation.startswith(NAME) or torch.compiler.is_compiling()):
            why = self.obstacle or f"{type(module).__name__} computes its attention by '{implementation}'"
            raise ModelError(
                f"strategy.sequence_parallel: given {ranks.size}, but {why}, where ranks cannot share the tokens of a"
                f" row; write model.attn_implementation: {NAME} if the model can have it, or leave sequence_parallel"
                " out"
            )
        if "flash" in implementation:
            return args, {**kwargs, **self._accepted(taken)}
        inputs = _inputs(args, kwargs)
        if self.obstacle and inputs is not None and len(lengths) > len(inputs):
            _tell_once(self.obstacle)
        if not implementation.startswith(NAME) or torch.compiler.is_compiling():
            return args, kwargs
        if inputs is None:
            return args, kwargs
        rows, tokens = inputs.shape[:2]
        others = [name for name in ("attention_mask", "past_key_values") if kwargs.get(name) is not None]
        whole = rows * tokens * (1 if ranks is None else ranks.size)
        if others or sum(lengths) != whole:
            if len(lengths) == rows and ranks is None:
                # nothing is to be kept apart: tokens that an adapter puts in front do no harm
                return args, kwargs
            raise ModelError(
                f"batch: given document_lengths that sum to {sum(lengths)} for {rows} row(s) of {whole // rows} tokens"
                f"{' and ' + ' and '.join(others) if others else ''}; expected each token in one document and no"
                " mask or cache; cut document_lengths together with a batch, and let no adapter put prompts in front of"
                " several documents"
            )
        _documents.set(Documents(tuple(lengths), taken.get("cu_seq_lens_q"), ranks))
        # with a mask of padding, of which there is none, transformers does not read position ids
        mask = torch.ones((), dtype=torch.bool, device=inputs.device).expand(rows, tokens)
        known = self._accepted({"document_lengths": lengths})
        return args, {**kwargs, **known, "attention_mask": mask}

    def _accepted(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in kwargs.items() if self.parameters is None or name in self.parameters}


def _inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Token ids of shape (rows, tokens), or embeddings of shape (rows, tokens, channels)."""
    for found in (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), *args[:1]):
        if isinstance(found, Tensor):
            return found
    return None


# ------------------------------------------------------------------------------------- transformers' two registries


def _register(base: str) -> str:
    """Make the implementation known to transformers; ``base`` is the one that it stands in for."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    name = NAME if base == "sdpa" else f"{NAME}_{base}"
    AttentionInterface.register(name, functools.partial(_attention, base))
    AttentionMaskInterface.register(name, functools.partial(_mask, ALL_MASK_ATTENTION_FUNCTIONS[base]))
    return name


def _mask(base: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A mask function: for documents a tensor without numbers that says what is visible, else the base's mask."""
    documents = _documents.get()
    if documents is None:
        return base(*args, **kwargs)
    if documents.ranks is not None:
        kwargs = {**kwargs, "kv_length": kwargs["kv_length"] * documents.ranks.size}
    known, window = _pattern(kwargs)
    rows, device = kwargs["batch_size"], kwargs["attention_mask"].device
    if not known and documents.ranks is not None:
        raise ModelError(
            "strategy.sequence_parallel: the model attends in a pattern that only a mask can express, which ranks"
            " cannot share; leave it out"
        )
    if not known:
        _tell_once("the model attends in a pattern that only a mask can express")
        within = _within_documents(kwargs["mask_function"], *documents.numbers(rows, device))
        whole = {"attention_mask": None, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        return base(*args, **{**kwargs, **whole, "mask_function": within})
    mask = torch.empty((rows, 1, 0, 0), dtype=torch.bool, device=device)
    mask._visible = Visible(documents, window)  # type: ignore[attr-defined]
    return mask


def _pattern(kwargs: Mapping[str, Any]) -> tuple[bool, int | None]:
    """Whether a mask is causal, and its window, if it has one."""
    # transformers forbids leaving the mask out wherever more than these patterns is in it
    if not kwargs.get("allow_is_causal_skip", True) or kwargs.get("use_vmap", False):
        return False, None
    window = kwargs.get("local_size")
    ends = [0, 1, 2] if window is None else [0, 1, window - 1, window, window + 1, 2 * window - 1, 2 * window]
    # on the host, where reading the answer waits for nothing
    at = torch.tensor(sorted({place for place in ends if 0 <= place < kwargs["kv_length"]}), device="cpu")
    zero = torch.zeros((), dtype=torch.long, device="cpu")
    queries, keys = at[:, None], at[None, :]
    expected = keys <= queries
    if window is not None:
        expected &= keys > queries - window
    try:
        seen = kwargs["mask_function"](zero, zero, queries, keys)
        return bool((seen == expected).all()), window
    except (RuntimeError, IndexError):  # it reads tensors of the device: other patterns, such as chunks, do
        return False, None


def _within_documents(function: Callable[..., Any], document: Tensor, place: Tensor) -> Callable[..., Any]:
    """A mask function that holds within documents, with places counted from where they begin."""

    def within(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = document[row, query] == document[row, key]
        return same & function(row, head, place[row, query], place[row, key])  # type: ignore[no-any-return]

    return within


def _attention(
    base: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """An attention function: documents one by one where the mask describes them, else the base."""
    if isinstance(attention_mask, Tensor) and attention_mask.dim() == 4 and attention_mask.shape[2] == 0:
        made: tuple[Tensor, Tensor | None] = _one_by_one(base, module, query, key, value, attention_mask, **kwargs)
        return made
    if kwargs.get("document_lengths") is not None and (attention_mask is None or attention_mask.dim() != 4):
        raise ModelError(
            f"model: {type(module).__name__} was given documents without a mask that keeps them apart; write"
            " model.attn_implementation: sdpa"
        )
    return _base(base, module)(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _one_by_one(
    base: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    visible: Visible | None = getattr(attention_mask, "_visible", None)
    if visible is None or key.shape[2] != query.shape[2]:
        raise ModelError(
            f"model: {type(module).__name__} changes its attention mask, so that documents cannot be told apart; write"
            " model.attn_implementation: sdpa"
        )
    unknown = {name for name, given in kwargs.items() if given is not None} - _UNDERSTOOD
    if visible.documents.ranks is not None and ("position_bias" in unknown or (unknown and base == "eager")):
        raise ModelError(
            f"strategy.sequence_parallel: the attention of {type(module).__name__} needs {', '.join(sorted(unknown))},"
            " which ranks cannot share; leave it out"
        )
    if "position_bias" in unknown or (unknown and base == "eager"):
        _tell_once(f"{type(module).__name__} needs {', '.join(sorted(unknown))}")
        seen = visible.dense(len(query), query.device)
        if base == "eager":
            seen = torch.zeros_like(seen, dtype=query.dtype).masked_fill_(~seen, torch.finfo(query.dtype).min)
        return _base(base, module)(module, query, key, value, seen, **kwargs)  # type: ignore[no-any-return]
    scale = kwargs.get("scaling")
    scores = Scores(
        scale=query.shape[-1] ** -0.5 if scale is None else scale,
        dropout=kwargs.get("dropout") or 0.0,
        softcap=kwargs.get("softcap"),
        sinks=kwargs.get("s_aux"),
    )
    return attend(query, key, value, visible, scores), None


_UNDERSTOOD = {
    *("dropout", "scaling", "softcap", "s_aux", "sliding_window", "is_causal", "position_ids", "cache_position"),
    *("use_cache", "output_attentions", "output_hidden_states", "output_router_logits", "return_dict"),
    *("document_lengths", "position_embeddings", "logits_to_keep"),
}
"""Arguments that are obeyed, or that say nothing about scores; models with sdpa have told that they need no others."""


def _base(base: str, module: nn.Module) -> Callable[..., Any]:
    if base == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[no-any-return]
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return ALL_ATTENTION_FUNCTIONS[base]  # type: ignore[no-any-return]


@functools.cache
def _tell_once(why: str) -> None:
    logger.warning(
        "attention takes a mask of tokens by tokens, since %s; memory and time grow with the square of the tokens in a"
        " micro-batch",
        why,
    )
