"""Config classes for ``data`` and ``loss``."""

from __future__ import annotations

from typing import ClassVar, Literal

import attrs
from hooktrain_sft import SFTDataConfig, SourceOptions

from hooktrain import above, at_least, between, field

__all__ = [
    "CPOLossConfig",
    "DPOLossConfig",
    "ORPOLossConfig",
    "PairLossConfig",
    "PreferenceDataConfig",
    "SimPOLossConfig",
]


@attrs.frozen(kw_only=True)
class PreferenceDataConfig(SFTDataConfig):
    """Pairs of answers to a prompt, one ``chosen`` and one ``rejected``, as text or messages.

    Answers are rendered and masked as those of ``type: sft``. ``max_length`` is that of each answer with its prompt,
    and a pack holds twice as many tokens.
    """

    together: ClassVar[int] = 2
    untrained: ClassVar[str] = "an answer is empty, or both are equal"

    overflow: Literal["auto", "error", "drop"] = field(default="auto")
    """Handling of pairs of which an answer with its prompt is longer than ``max_length``; ``auto`` drops them up to
    ``max_dropped``, and above it the run stops as with ``error``. Answers are never cut."""
    on_empty: Literal["auto", "error", "drop"] = field(default="auto")
    """Handling of pairs with an empty answer or with two equal ones; ``auto`` drops them up to ``max_dropped``, and
    above it the run stops as with ``error``."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.reasoning == "split":
            raise ValueError(
                "reasoning_turns: given split, which makes several sequences of an answer, expected last or all;"
                " change or remove it"
            )
        if self.trained_part == "all":
            raise ValueError(
                "train_on: given all of the text, which includes the prompt that both answers share, expected"
                " assistant, last_assistant or completion; change train_on, or remove mask_inputs: false"
            )
        if any(SourceOptions.of(source).streaming for source in self.sources):
            raise ValueError("sources: given a stream, which pairs cannot be read from; set streaming: false")


@attrs.frozen(kw_only=True)
class PairLossConfig:
    """Options of all losses of pairs.

    Attributes:
        needs_reference: whether the loss compares with a reference.
    """

    needs_reference: ClassVar[bool] = False

    beta: float = field(default=0.1, validator=above(0))
    """Factor of the differences of log-probabilities; with a small one the model moves further from where it began."""
    chunk_size: int | None = field(default=None, validator=at_least(1))
    """Tokens of answers that the LM head processes at a time, which limits the memory for logits; by default chosen by
    the size of the vocabulary."""

    @property
    def hides_logits(self) -> str:
        """Recipe setting to suggest where a plugin needs logits: there is none."""
        return "choose another loss"


@attrs.frozen(kw_only=True)
class DPOLossConfig(PairLossConfig):
    """Direct Preference Optimization (arXiv 2305.18290) and its variants, by TRL's names."""

    needs_reference: ClassVar[bool] = True

    loss_type: Literal["sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "apo_zero", "apo_down"] = field(
        default="sigmoid"
    )
    """Variant: ``sigmoid`` is DPO; ``sigmoid_norm`` the same with log-probabilities that are means over the tokens;
    ``ipo`` takes such means too (arXiv 2310.12036); ``hinge`` is SLiC (arXiv 2305.10425); ``robust`` allows for wrong
    preferences (arXiv 2403.00409); ``apo_zero`` and ``apo_down`` are APO (arXiv 2408.06266)."""
    label_smoothing: float = field(default=0.0, validator=between(0, 0.5))
    """Share of the preferences that are taken to be wrong, for ``robust`` and ``sigmoid`` (conservative DPO)."""

    def __attrs_post_init__(self) -> None:
        if self.label_smoothing and self.loss_type not in ("robust", "sigmoid"):
            raise ValueError(
                f"label_smoothing: given {self.label_smoothing} with loss_type {self.loss_type}, which has none;"
                " expected loss_type robust or sigmoid; remove one of the two"
            )
        if self.label_smoothing == 0.5:
            raise ValueError(
                "label_smoothing: given 0.5, with which preferences mean nothing, expected less; write for example 0.1"
            )


@attrs.frozen(kw_only=True)
class SimPOLossConfig(PairLossConfig):
    """SimPO (arXiv 2405.14734): means over the tokens, a margin, and no reference."""

    beta: float = field(default=2.0, validator=above(0))
    """Factor of the difference of the mean log-probabilities."""
    gamma: float = field(default=0.5, validator=at_least(0))
    """Margin by which the chosen answer is to be better, as TRL's ``simpo_gamma``."""


@attrs.frozen(kw_only=True)
class ORPOLossConfig(PairLossConfig):
    """ORPO (arXiv 2403.07691): cross-entropy of the chosen answer and the ratio of odds, without a reference."""


@attrs.frozen(kw_only=True)
class CPOLossConfig(PairLossConfig):
    """CPO (arXiv 2401.08417): DPO without a reference, and the cross-entropy of the chosen answer."""

    cpo_alpha: float = field(default=1.0, validator=at_least(0))
    """Factor of the cross-entropy of the chosen answer, the mean over its tokens."""
