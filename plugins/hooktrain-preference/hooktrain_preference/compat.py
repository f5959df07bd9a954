"""Parts of transformers' classifiers, which have no method that returns them.

Seen to work with transformers 5.23. ``tests/plugins/preference/test_compat.py`` fails where an upgrade breaks it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["decoder_and_scores", "number_of_labels", "padding_id", "pooled_scores"]


def decoder_and_scores(model: Any) -> tuple[nn.Module, nn.Module] | None:
    """Return the decoder of a classifier and the head that gives the labels of each token; None for other models."""
    decoder, head = getattr(model, "base_model", None), getattr(model, "score", None)
    if not isinstance(decoder, nn.Module) or decoder is model or not isinstance(head, nn.Module):
        return None
    return decoder, head


def number_of_labels(model: Any) -> int:
    """Return the labels of a classifier's config."""
    return int(getattr(model.config, "num_labels", 0))


def padding_id(model: Any) -> int | None:
    """Return the token of a classifier's config after which it does not look for its labels."""
    found = getattr(model.config.get_text_config(), "pad_token_id", None)
    return None if found is None else int(found)


def pooled_scores(output: Any) -> Tensor:
    """Return the labels in a classifier's output, shape (sequences, labels)."""
    scores: Tensor = output.logits
    return scores
