"""The attention implementation ``documents`` for packed and padding-free batches in transformers.

transformers finds out from position ids where documents begin, which waits for the device, and then builds a mask of
tokens by tokens. Here the batch says how long its documents are: hooks keep the lengths while the decoder's forward
runs, the mask function returns a description instead of a mask, and the attention function computes documents one by
one. Without lengths (generation, padded batches, compiled models) transformers' own sdpa or eager is used.
"""

from __future__ import annotations

import functools
import inspect
import logging
import re
import sys
import weakref
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from hooktrain import ModelError
from hooktrain_hf.compat import (
    attention_implementation,
    decoder_of,
    eager_attention,
    is_stateful,
    layer_types,
    supports_attention_interface,
    works_without_masks,
)
from hooktrain_hf.counted_positions import count_own_positions, in_documents
from hooktrain_hf.document_attention import Documents, Scores, Visible, attend
from hooktrain_hf.documents_op import attend_in_graph, describes_documents, documents_of, documents_tensor
from hooktrain_hf.location import first_line

__all__ = [
    "NAME",
    "activate_attention",
    "expect_compiled_blocks",
    "install_document_attention",
    "obstacle",
    "restore_attention",
    "set_attention",
    "shares_prefixes",
]

logger = logging.getLogger(__name__)

NAME = "documents"
"""The implementation's name in transformers' registries; ``documents_eager`` for models without sdpa."""

_KERNEL_KEYS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
_KEYS = ("document_lengths", "document_prefixes", "sequence_parallel", *_KERNEL_KEYS)

_RECURRENT = re.compile(r"linear|mamba|recurrent|conv|hybrid|compressed")
"""Kinds of layers that carry a state from token to token, or pool over tokens, whatever the mask."""


def install_document_attention(model: Any, implementation: str) -> None:
    """Make a transformers model use the lengths of documents that a batch contains.

    Args:
        model: loaded with transformers' own choice of attention where ``implementation`` is ``auto`` or ``documents``.
        implementation: the recipe's ``model.attn_implementation``.

    Raises:
        ModelError: ``implementation`` is ``documents``, and the model does not support it.
    """
    decoder, name = decoder_of(model), type(model).__name__
    own, reason = attention_implementation(decoder), ""
    if implementation in ("auto", NAME):
        if why := obstacle(decoder):
            reason = f"{name} {why}"
            if implementation == NAME:
                raise ModelError(f"model.attn_implementation: given '{NAME}', but {reason}; write auto or sdpa")
        else:
            decoder.set_attn_implementation(_register(attention_implementation(decoder)))
    parameters = _parameters(decoder)
    keep = _KeepDocuments(parameters, reason, count_own_positions(decoder), _is_recurrent(decoder))
    _installed[decoder] = _Installed(own, attention_implementation(decoder), not (keep.counted or keep.recurrent))
    _installed[decoder].activate(decoder)
    decoder.register_forward_pre_hook(keep, with_kwargs=True)
    decoder.register_forward_hook(_forget_documents, always_call=True)


def set_attention(model: Any, implementation: str) -> None:
    """Set the attention of a model that was built in Python, and make it use the lengths of documents.

    Args:
        model: a transformers model; document attention may be installed already.
        implementation: the recipe's ``model.attn_implementation``; ``auto`` keeps the model's own.

    Raises:
        ModelError: the model does not support it.
    """
    decoder = decoder_of(model)
    installed = _installed.get(decoder)
    if installed is not None:
        installed.activate(decoder)
    if installed is not None and implementation in ("auto", attention_implementation(decoder)):
        return
    if implementation not in ("auto", NAME):
        try:
            decoder.set_attn_implementation(implementation)
        except (ValueError, ImportError, RuntimeError, AttributeError) as error:
            raise ModelError(
                f"model.attn_implementation: given '{implementation}', which {type(model).__name__} does not"
                f" support ({first_line(error)}); write auto, sdpa or eager"
            ) from error
    if installed is None:
        install_document_attention(model, implementation)


def activate_attention(model: Any) -> None:
    """Give a model the attention again that :func:`restore_attention` took away."""
    decoder = decoder_of(model)
    if decoder in _installed:
        _installed[decoder].activate(decoder)


def shares_prefixes(model: Any) -> bool:
    """Return whether documents of a model may share the beginning of the one before, by ``document_prefixes``.

    A batch then has the lengths of the tokens that are there, and positions that continue those of the beginning.
    """
    decoder = decoder_of(model)
    if decoder not in _installed or not _installed[decoder].shares or torch.compiler.is_compiling():
        return False
    return attention_implementation(decoder).startswith(NAME)


def restore_attention(model: Any) -> None:
    """Give a model the attention and the cache of keys and values back that it had; lengths of documents still work."""
    decoder = decoder_of(model)
    if decoder in _installed:
        _installed[decoder].restore(decoder)


class _Installed:
    """What of a decoder differs while it is trained: its attention, and that it keeps no cache unless asked."""

    def __init__(self, own: str, used: str, shares: bool) -> None:
        self.own, self.used, self.shares = own, used, shares
        self._cache: Any = None

    def activate(self, decoder: Any) -> None:
        if attention_implementation(decoder) != self.used and self._cache is None:
            decoder.set_attn_implementation(self.used)
        parameters = _parameters(decoder)
        if self._cache is None and (parameters is None or "use_cache" in parameters):
            self._cache = decoder.register_forward_pre_hook(_DisableCache(decoder), prepend=True, with_kwargs=True)

    def restore(self, decoder: Any) -> None:
        if self._cache is not None:
            self._cache.remove()
            self._cache = None
        if attention_implementation(decoder) != self.own:
            decoder.set_attn_implementation(self.own)


_installed: weakref.WeakKeyDictionary[Any, _Installed] = weakref.WeakKeyDictionary()
_compiled: weakref.WeakSet[Any] = weakref.WeakSet()
"""Decoders whose blocks are compiled."""


def expect_compiled_blocks(model: Any) -> None:
    """Give the blocks of a model documents in a form on whose lengths their graphs do not depend."""
    _compiled.add(decoder_of(model))


def obstacle(decoder: Any) -> str:
    """Return why a model's attention cannot be computed document by document; an empty text where it can."""
    base = attention_implementation(decoder)
    module = sys.modules.get(type(decoder).__module__)
    if not supports_attention_interface(decoder) or base not in ("sdpa", "eager"):
        return "does not use transformers' attention interface"
    if not works_without_masks(decoder):
        return "needs its attention mask in full"
    try:
        source = inspect.getsource(module) if module is not None else ""
    except (OSError, TypeError):
        source = ""
    if not source or re.search(r"_attn_implementation\b[^\n]*\bsdpa\b", source):
        return "handles sdpa in code of its own"
    if base == "eager" and eager_attention(decoder) is None:
        return "has attention code of its own"
    return ""


def _is_recurrent(decoder: Any) -> bool:
    """Return whether layers carry a state from token to token, which kernels begin anew where documents do."""
    kinds = layer_types(decoder)
    if any(map(_RECURRENT.search, kinds)) or (not kinds and is_stateful(decoder)):
        return True
    return any(isinstance(m, nn.Conv1d) and m.kernel_size[0] > 1 for m in decoder.modules())


def _parameters(decoder: Any) -> frozenset[str] | None:
    """Return the names that the decoder's ``forward`` takes; None where it takes any."""
    parameters = inspect.signature(decoder.forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return frozenset(parameters)


_documents: ContextVar[Documents | None] = ContextVar("documents", default=None)
"""The documents of the decoder call that is running."""

_in_graph: ContextVar[bool] = ContextVar("in_graph", default=False)
"""Whether the blocks of that decoder are compiled."""

_visible: Any = WeakTensorKeyDictionary()
"""For each tensor that stands in for a mask, the :class:`Visible` that it describes."""


def _forget_documents(*args: Any) -> None:
    _documents.set(None)
    in_documents.set(False)


class _DisableCache:
    """A forward pre-hook that disables the cache of keys and values where a caller does not set ``use_cache``.

    transformers enables it by default, and then does not look for documents that share a sequence: a loss that calls
    the model with ids and positions alone would let them see each other. Generation always sets ``use_cache``.
    """

    def __init__(self, decoder: Any) -> None:
        self.names = list(inspect.signature(decoder.forward).parameters)

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        if given.get("use_cache") is not None or given.get("past_key_values") is not None:
            return None
        if "use_cache" in self.names[: len(args)]:  # some models pass everything on by position
            at = self.names.index("use_cache")
            return (*args[:at], False, *args[at + 1 :]), kwargs
        return args, {**kwargs, "use_cache": False}


class _KeepDocuments:
    """A forward pre-hook that removes the lengths of documents from the arguments and keeps them for the attention.

    It is registered on the decoder, since adapters call the ``forward`` of the model around it directly.
    """

    def __init__(
        self, parameters: frozenset[str] | None, obstacle: str, counted: bool = False, recurrent: bool = False
    ) -> None:
        self.parameters, self.obstacle, self.counted, self.recurrent = parameters, obstacle, counted, recurrent

    def __call__(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        lengths = kwargs.get("document_lengths")
        if lengths is None:
            return None
        taken = {name: kwargs[name] for name in _KERNEL_KEYS if name in kwargs}
        ranks, prefixes = kwargs.get("sequence_parallel"), tuple(kwargs.get("document_prefixes") or ())
        kwargs = {name: value for name, value in kwargs.items() if name not in _KEYS}
        implementation = attention_implementation(module)
        in_documents.set(True)
        if ranks is not None and (self.counted or self.recurrent):
            what = "counts its positions" if self.counted else "carries a state from token to token"
            raise ModelError(
                f"strategy.sequence_parallel: given {ranks.size}, but {type(module).__name__} {what} over complete"
                " sequences, which no rank has; remove sequence_parallel"
            )
        if ranks is not None and (not implementation.startswith(NAME) or torch.compiler.is_compiling()):
            why = self.obstacle or f"{type(module).__name__} computes its attention by '{implementation}'"
            raise ModelError(
                f"strategy.sequence_parallel: given {ranks.size}, but {why}, with which ranks cannot share the tokens"
                f" of a sequence; write model.attn_implementation: {NAME} if the model supports it, or remove"
                " sequence_parallel"
            )
        if any(prefixes) and not shares_prefixes(module):
            raise ModelError(
                f"batch: given document_prefixes, but the attention of {type(module).__name__} cannot share them;"
                " expected a model for which hooktrain_hf.shares_prefixes is true"
            )
        inputs = _inputs(args, kwargs)
        if self.recurrent and inputs is not None and len(lengths) > len(inputs) == 1:
            # for kernels that begin their state anew; torch's own forms ignore these
            number, _ = Documents(tuple(lengths)).numbers(1, inputs.device)
            kwargs |= self._accepted({**taken, "seq_idx": number.int()})
        if "flash" in implementation:
            return args, {**kwargs, **self._accepted(taken)}
        if self.obstacle and inputs is not None and len(lengths) > len(inputs):
            _warn_once(self.obstacle)
        if not implementation.startswith(NAME) or torch.compiler.is_compiling():
            return args, kwargs
        if inputs is None:
            return args, kwargs
        sequences, tokens = inputs.shape[:2]
        others = [name for name in ("attention_mask", "past_key_values") if kwargs.get(name) is not None]
        total = sequences * tokens * (1 if ranks is None else ranks.size)
        if others or sum(lengths) != total:
            if len(lengths) == sequences and ranks is None:
                # one document in each sequence: tokens that an adapter puts in front do no harm
                return args, kwargs
            raise ModelError(
                f"batch: given document_lengths that sum to {sum(lengths)} for {sequences} sequence(s) of"
                f" {total // sequences} tokens{' and ' + ' and '.join(others) if others else ''}; expected each token"
                " in one document and no mask or cache; shorten document_lengths together with the batch, and use no"
                " adapter that puts prompts in front of several documents"
            )
        _documents.set(Documents(tuple(lengths), taken.get("cu_seq_lens_q"), ranks, prefixes))
        _in_graph.set(module in _compiled and not prefixes)
        # transformers does not read position ids where there is a padding mask; this one masks nothing
        mask = torch.ones((), dtype=torch.bool, device=inputs.device).expand(sequences, tokens)
        # compiled blocks guard on the values that they are given, so theirs is a tensor
        marker = torch.empty(0, dtype=torch.long) if module in _compiled else lengths
        known = self._accepted({"document_lengths": marker})
        return args, {**kwargs, **known, "attention_mask": mask}

    def _accepted(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in kwargs.items() if self.parameters is None or name in self.parameters}


def _inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return token ids of shape (sequences, tokens), or embeddings of shape (sequences, tokens, channels)."""
    for found in (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), *args[:1]):
        if isinstance(found, Tensor):
            return found
    return None


# ------------------------------------------------------------------------------------- transformers' two registries


def _register(base: str) -> str:
    """Register the implementation with transformers; ``base`` is the one that it falls back to."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    name = NAME if base == "sdpa" else f"{NAME}_{base}"
    AttentionInterface.register(name, functools.partial(_attention, base))
    AttentionMaskInterface.register(name, functools.partial(_mask, ALL_MASK_ATTENTION_FUNCTIONS[base]))
    return name


def _mask(base: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A mask function that returns an empty tensor in the place of a mask for documents, else the base's mask."""
    documents = _documents.get()
    if documents is None:
        return base(*args, **kwargs)
    if documents.ranks is not None:
        kwargs = {**kwargs, "kv_length": kwargs["kv_length"] * documents.ranks.size}
    known, window = _pattern(kwargs)
    sequences, device = kwargs["batch_size"], kwargs["attention_mask"].device
    if not known and documents.ranks is not None:
        raise ModelError(
            "strategy.sequence_parallel: the model attends in a pattern that needs a mask, which ranks cannot share;"
            " remove the key"
        )
    if not known:
        _warn_once("the model attends in a pattern that needs one")
        within = _within_documents(kwargs["mask_function"], documents, sequences, device)
        plain = {"attention_mask": None, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        return base(*args, **{**kwargs, **plain, "mask_function": within})
    if _in_graph.get():
        return documents_tensor(Visible(documents, window))
    mask = torch.empty((sequences, 1, 0, 0), dtype=torch.bool, device=device)
    _visible[mask] = Visible(documents, window)
    return mask


def _pattern(kwargs: Mapping[str, Any]) -> tuple[bool, int | None]:
    """Return whether a mask is causal, and its sliding window, if it has one."""
    # transformers sets these wherever a mask has more in it than these patterns
    if not kwargs.get("allow_is_causal_skip", True) or kwargs.get("use_vmap", False):
        return False, None
    window = kwargs.get("local_size")
    ends = [0, 1, 2] if window is None else [0, 1, window - 1, window, window + 1, 2 * window - 1, 2 * window]
    # on the host, where reading the result waits for nothing
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


def _within_documents(
    function: Callable[..., Any], documents: Documents, sequences: int, device: torch.device
) -> Callable[..., Any]:
    """Return a mask function that holds within documents, with places counted from their beginnings."""
    document, place = documents.numbers(sequences, device)
    shared = documents.shared(document)

    def within(sequence: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = document[sequence, query] == document[sequence, key]
        if shared is not None:
            before = document[sequence, query] == document[sequence, key] + 1
            same = same | (before & (place[sequence, key] < shared[sequence, query]))
        seen: Tensor = function(sequence, head, place[sequence, query], place[sequence, key])
        return same & seen

    return within


def _attention(
    base: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """An attention function that computes documents one by one where the mask describes them, else calls the base."""
    in_graph = describes_documents(attention_mask)
    if in_graph and not kwargs.get("dropout") and not _needs_mask(base, kwargs) and key.shape[2] == query.shape[2]:
        scale, softcap, sinks = kwargs.get("scaling"), kwargs.get("softcap"), kwargs.get("s_aux")
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return attend_in_graph(query, key, value, attention_mask, scale, softcap, sinks), None
    if in_graph or (isinstance(attention_mask, Tensor) and attention_mask.dim() == 4 and attention_mask.shape[2] == 0):
        made: tuple[Tensor, Tensor | None] = _one_by_one(base, module, query, key, value, attention_mask, **kwargs)
        return made
    if kwargs.get("document_lengths") is not None and (attention_mask is None or attention_mask.dim() != 4):
        raise ModelError(
            f"model.attn_implementation: {type(module).__name__} passes no mask that separates documents; write sdpa"
        )
    return _base(base, module)(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]


def _needs_mask(base: str, kwargs: Mapping[str, Any]) -> list[str]:
    """Return the arguments for which attention needs a mask of tokens by tokens."""
    unknown = sorted(name for name, value in kwargs.items() if value is not None and name not in _KNOWN_ARGUMENTS)
    return unknown if "position_bias" in unknown or base == "eager" else []


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _one_by_one(
    base: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    visible = documents_of(attention_mask) if describes_documents(attention_mask) else _visible.get(attention_mask)
    if visible is None or key.shape[2] != query.shape[2]:
        raise ModelError(
            f"model.attn_implementation: {type(module).__name__} changes its attention mask, so that documents cannot"
            " be separated; write sdpa"
        )
    unknown = _needs_mask(base, kwargs)
    if visible.documents.ranks is not None and unknown:
        raise ModelError(
            f"strategy.sequence_parallel: the attention of {type(module).__name__} needs {', '.join(unknown)},"
            " which ranks cannot share; remove the key"
        )
    if unknown:
        _warn_once(f"{type(module).__name__} needs {', '.join(unknown)}")
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


_KNOWN_ARGUMENTS = {
    *("dropout", "scaling", "softcap", "s_aux", "sliding_window", "is_causal", "position_ids", "cache_position"),
    *("use_cache", "output_attentions", "output_hidden_states", "output_router_logits", "return_dict"),
    *("document_lengths", "position_embeddings", "logits_to_keep", "seq_idx", *_KERNEL_KEYS),
}
"""Arguments that are used here, or that do not change scores; models that support sdpa need no others."""


def _base(base: str, module: nn.Module) -> Callable[..., Any]:
    if base == "eager" and (eager := eager_attention(module)) is not None:
        return eager
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return ALL_ATTENTION_FUNCTIONS[base]  # type: ignore[no-any-return]


@functools.cache
def _warn_once(why: str) -> None:
    logger.warning(
        "attention uses a mask of tokens by tokens, since %s; memory and time grow with the square of the tokens in a"
        " micro-batch",
        why,
    )
