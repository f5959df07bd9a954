"""What a recipe can say under ``loss`` for the trainer types of this plugin."""

from __future__ import annotations

from typing import ClassVar

import attrs

from hooktrain import at_least, between, field

__all__ = ["CrossEntropyConfig", "DFTLossConfig", "SFTLossConfig"]


@attrs.frozen(kw_only=True)
class CrossEntropyConfig:
    """What the losses of this plugin have in common.

    Attributes:
        needs_logits: whether the loss calls the model for all of its logits; a plugin under which there are none
            refuses the recipe.
        weighted_by_probability: whether the loss of a token is multiplied by its detached probability.
    """

    needs_logits: ClassVar[bool] = False
    weighted_by_probability: ClassVar[bool] = False

    label_smoothing: float = field(default=0.0, validator=between(0, 1))
    """Share of the target's probability that is spread evenly over the vocabulary."""
    z_loss: float = field(default=0.0, validator=at_least(0))
    """Factor of the squared log of the softmax's denominator, which is added for each token; keeps logits small."""
    chunk_size: int | None = field(default=None, validator=at_least(1))
    """How many supervised tokens meet the LM head at a time, which bounds the memory that logits take; chosen by the
    size of the vocabulary when left out."""


@attrs.frozen(kw_only=True)
class SFTLossConfig(CrossEntropyConfig):
    """Next-token cross-entropy over the supervised tokens."""


@attrs.frozen(kw_only=True)
class DFTLossConfig(CrossEntropyConfig):
    """Dynamic Fine-Tuning (Wu et al., 2025): the cross-entropy of a token times the probability that it has already."""

    weighted_by_probability: ClassVar[bool] = True
