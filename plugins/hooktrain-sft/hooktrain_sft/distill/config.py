"""The config class of the loss ``distill``."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import attrs

from hooktrain import above, at_least, field

__all__ = ["DistillLossConfig"]


def _share(instance: Any, attribute: Any, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(
            f"given {value:g}, expected a share from 0 to less than 1; write for example 0.5, or loss: {{type: sft}} to"
            " train on the labels alone"
        )


def _inside(instance: Any, attribute: Any, value: float | None) -> None:
    if value is not None and not 0 < value < 1:
        raise ValueError(
            f"given {value:g}, expected more than 0 and less than 1; write divergence: forward_kl in the place of 0, or"
            " reverse_kl in that of 1"
        )


@attrs.frozen(kw_only=True)
class DistillLossConfig:
    """Divergence of the model's next-token probabilities from a teacher's, over the trained tokens.

    Attributes:
        provides_outputs: outputs of the model that plugins may ask for.
    """

    provides_outputs: ClassVar[tuple[str, ...]] = ("last_hidden_state",)

    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = field(default="forward_kl")
    """``forward_kl`` is KL(teacher ‖ model), ``reverse_kl`` KL(model ‖ teacher), and ``jsd`` the generalized
    Jensen-Shannon divergence of GKD (arXiv 2306.13649)."""
    beta: float | None = field(default=None, validator=_inside)
    """For ``jsd``, the share of the teacher in the mixture that both are compared with; 0.5 by default."""
    temperature: float = field(default=1.0, validator=above(0))
    """Divisor of the logits of both in the divergence, which is not multiplied by its square."""
    label_weight: float = field(default=0.0, validator=_share)
    """Share of the cross-entropy of the labels in the loss; the rest is the divergence."""
    top_k: int | None = field(default=None, validator=at_least(1))
    """Read the teacher's so many likeliest tokens and their log-probabilities, which ``hooktrain data RECIPE
    --teacher`` has stored; all other tokens are compared as one. The run does not load the teacher then."""
    chunk_size: int | None = field(default=None, validator=at_least(1))
    """Trained tokens that both LM heads process at a time, which limits the memory for logits; by default chosen by the
    size of the vocabulary."""

    def __attrs_post_init__(self) -> None:
        if self.beta is not None and self.divergence != "jsd":
            raise ValueError(
                f"beta: given {self.beta:g} with divergence {self.divergence}, which has none; remove it, or write"
                " divergence: jsd"
            )
        if self.top_k is not None and self.temperature != 1:
            raise ValueError(
                f"temperature: given {self.temperature:g} with top_k, expected 1, with which the teacher's"
                " probabilities are stored; remove one of the two"
            )

    @property
    def hides_logits(self) -> str:
        """Recipe setting to suggest where a plugin needs logits: there is none."""
        return "choose another loss"
