"""Config classes for ``loss``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import attrs

from hooktrain import at_least, between, field

__all__ = ["CrossEntropyConfig", "DFTLossConfig", "SFTLossConfig"]


@attrs.frozen(kw_only=True)
class CrossEntropyConfig:
    """Options of all losses of this plugin.

    Attributes:
        weighted_by_probability: whether a token's loss is multiplied by its detached probability.
        provides_outputs: outputs of the model that plugins may ask for.
    """

    weighted_by_probability: ClassVar[bool] = False
    provides_outputs: ClassVar[tuple[str, ...]] = ("last_hidden_state", "hidden_states", "router_logits")

    label_smoothing: float = field(default=0.0, validator=between(0, 1))
    """Share of the target's probability that is distributed evenly over the vocabulary."""
    z_loss: float = field(default=0.0, validator=at_least(0))
    """Factor of the squared log of the softmax's denominator, added for each token; keeps logits small."""
    chunk_size: int | None = field(default=None, validator=at_least(1))
    """Trained tokens that the LM head processes at a time, which limits the memory for logits; by default chosen by the
    size of the vocabulary."""
    all_logits: bool = field(default=False)
    """Whether the model computes the logits of all tokens, for plugins that read its output; takes more memory."""

    @property
    def needs_logits(self) -> bool:
        """Whether a model that returns no logits is refused."""
        return self.all_logits

    @property
    def loss_terms(self) -> Mapping[str, float]:
        """Terms of the loss that the recipe tells, each with its coefficient."""
        return {"z_loss": self.z_loss} if self.z_loss else {}

    @property
    def hides_logits(self) -> str:
        """Recipe setting to suggest where a plugin needs logits."""
        return "" if self.all_logits else "write loss.all_logits: true"


@attrs.frozen(kw_only=True)
class SFTLossConfig(CrossEntropyConfig):
    """Next-token cross-entropy over the trained tokens."""


@attrs.frozen(kw_only=True)
class DFTLossConfig(CrossEntropyConfig):
    """Dynamic Fine-Tuning (Wu et al., 2025): the cross-entropy of a token times its current probability."""

    weighted_by_probability: ClassVar[bool] = True
