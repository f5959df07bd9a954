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
        weighted_by_probability: whether the loss of a token is multiplied by its detached probability.
    """

    weighted_by_probability: ClassVar[bool] = False

    label_smoothing: float = field(default=0.0, validator=between(0, 1))
    """Share of the target's probability that is spread evenly over the vocabulary."""
    z_loss: float = field(default=0.0, validator=at_least(0))
    """Factor of the squared log of the softmax's denominator, which is added for each token; keeps logits small."""
    chunk_size: int | None = field(default=None, validator=at_least(1))
    """How many supervised tokens meet the LM head at a time, which bounds the memory that logits take; chosen by the
    size of the vocabulary when left out."""
    all_logits: bool = field(default=False)
    """Whether the model is called for the logits of all tokens, for plugins that look at what it returns; they take the
    memory that is saved otherwise."""

    @property
    def needs_logits(self) -> bool:
        """Whether a model that makes no logits is refused."""
        return self.all_logits

    @property
    def hides_logits(self) -> str:
        """What to write for a plugin that looks at logits."""
        return "" if self.all_logits else "write loss.all_logits: true"


@attrs.frozen(kw_only=True)
class SFTLossConfig(CrossEntropyConfig):
    """Next-token cross-entropy over the supervised tokens."""


@attrs.frozen(kw_only=True)
class DFTLossConfig(CrossEntropyConfig):
    """Dynamic Fine-Tuning (Wu et al., 2025): the cross-entropy of a token times the probability that it has already."""

    weighted_by_probability: ClassVar[bool] = True
