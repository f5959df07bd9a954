"""Embeddings of tokens that a model does not know yet."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch

from hooktrain import ModelError
from hooktrain_hf.compat import complete_shape, complete_weights, vocabulary_size
from hooktrain_hf.tokenizer import added_tokens

__all__ = ["check_vocabulary", "fit_vocabulary", "new_token_ids"]

_new: weakref.WeakKeyDictionary[Any, tuple[int, ...]] = weakref.WeakKeyDictionary()


def new_token_ids(model: Any) -> tuple[int, ...]:
    """Return the ids of the tokens that :func:`fit_vocabulary` gave a transformers model, in order."""
    return _new.get(model, ())


def fit_vocabulary(model: Any, tokenizer: Any) -> None:
    """Give a transformers model an embedding for each token, new ones being the mean of the old.

    New are those that the recipe adds to the tokenizer, and those beyond the model's embedding, which grows. So does
    its head. The mean lets a new token be about as likely as any other, and needs no random numbers.

    Args:
        model: the model; its weights, config and size of the vocabulary change.
        tokenizer: the tokenizer that it is trained with.
    """
    size = vocabulary_size(model)
    if size is None:
        return
    ids = tuple(sorted({*added_tokens(tokenizer), *range(size, len(tokenizer))}))
    if not ids:
        return
    if len(tokenizer) > size:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    modules = [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]
    for weight in dict.fromkeys(value for module in modules for value in module.parameters(recurse=False)):
        if complete_shape(weight)[0] == vocabulary_size(model):  # an embedding, a head, or the bias of a head
            _fill(weight, ids)
    _new[model] = ids


def _fill(weight: torch.nn.Parameter, ids: Sequence[int]) -> None:
    """Set rows to the mean of those before the first of them."""
    with torch.no_grad(), complete_weights([weight]):
        if weight.numel():
            weight[list(ids)] = weight[: ids[0]].float().mean(0).to(weight.dtype)


def check_vocabulary(model: Any, tokenizer: Any) -> None:
    """Raise ModelError where a tokenizer has more tokens than a model passed from Python embeds.

    Training would end in an index error deep in the model, on a GPU without a place.
    """
    embedded = vocabulary_size(model)
    if embedded is not None and len(tokenizer) > embedded:
        raise ModelError(
            f"model: given a model that embeds {embedded} tokens, but the tokenizer has {len(tokenizer)}; expected the"
            " model's own tokenizer; give that one, or call model.resize_token_embeddings(len(tokenizer)) first"
        )
