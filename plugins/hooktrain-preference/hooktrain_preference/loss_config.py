"""Config classes for ``loss``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import attrs

from hooktrain import above, at_least, between, did_you_mean, field

__all__ = [
    "DPO_LOSSES",
    "AnswerLossConfig",
    "CPOLossConfig",
    "DPOLossConfig",
    "KTOLossConfig",
    "ORPOLossConfig",
    "PairLossConfig",
    "RewardLossConfig",
    "SimPOLossConfig",
]

DPO_LOSSES = (
    *("sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard"),
    *("apo_zero", "apo_down", "discopop", "sft"),
)
"""Variants of DPO, by TRL's names."""
_SMOOTHED = ("robust", "sigmoid", "exo_pair")


@attrs.frozen(kw_only=True)
class AnswerLossConfig:
    """Options of all losses that compare log-probabilities of answers.

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
class PairLossConfig(AnswerLossConfig):
    """Options of all losses of pairs."""

    share_prompts: bool = field(default=True)
    """Whether a prompt is computed once for both of its answers, where the model's attention allows it."""


def _variants(instance: Any, attribute: Any, value: str | Mapping[str, Any]) -> None:
    if isinstance(value, str):
        return
    if not value:
        raise ValueError("given no loss, expected one or several with their weights; write for example {sigmoid: 1.0}")
    for name, weight in value.items():
        if name not in DPO_LOSSES:
            raise ValueError(f"given '{name}', expected one of {', '.join(DPO_LOSSES)}{did_you_mean(name, DPO_LOSSES)}")
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
            raise ValueError(
                f"given the weight {weight!r} for {name}, expected a positive number; write for example {name}: 0.5"
            )


@attrs.frozen(kw_only=True)
class DPOLossConfig(PairLossConfig):
    """Direct Preference Optimization (arXiv 2305.18290) and its variants, by TRL's names."""

    needs_reference: ClassVar[bool] = True

    loss_type: (
        Literal[
            "sigmoid",
            "sigmoid_norm",
            "hinge",
            "ipo",
            "robust",
            "exo_pair",
            "nca_pair",
            "bco_pair",
            "sppo_hard",
            "apo_zero",
            "apo_down",
            "discopop",
            "sft",
        ]
        | Mapping[str, Any]
    ) = field(default="sigmoid", validator=_variants)
    """Variant: ``sigmoid`` is DPO; ``sigmoid_norm`` the same with log-probabilities that are means over the tokens;
    ``ipo`` takes such means too (arXiv 2310.12036); ``hinge`` is SLiC (arXiv 2305.10425); ``robust`` allows for wrong
    preferences (arXiv 2403.00409); ``exo_pair`` is EXO (arXiv 2402.00856), ``nca_pair`` NCA (arXiv 2402.05369),
    ``bco_pair`` BCO (arXiv 2404.04656) without its shift, ``sppo_hard`` SPPO (arXiv 2405.00675); ``apo_zero`` and
    ``apo_down`` are APO (arXiv 2408.06266), ``discopop`` is DiscoPOP (arXiv 2406.08414), and ``sft`` is the
    cross-entropy of the chosen answers. Or several at once with their weights, such as
    ``{sigmoid: 0.8, bco_pair: 0.2, sft: 1.0}``, which is MPO (arXiv 2411.10442)."""
    label_smoothing: float = field(default=0.0, validator=between(0, 0.5))
    """Share of the preferences that are taken to be wrong, for ``robust``, ``exo_pair`` and ``sigmoid`` (conservative
    DPO)."""
    discopop_tau: float = field(default=0.05, validator=above(0))
    """Temperature with which ``discopop`` mixes its two parts."""

    @property
    def variants(self) -> Mapping[str, float]:
        """The variants by name, each with its weight."""
        return {self.loss_type: 1.0} if isinstance(self.loss_type, str) else dict(self.loss_type)

    def __attrs_post_init__(self) -> None:
        given = ", ".join(self.variants)
        if self.label_smoothing and not any(name in _SMOOTHED for name in self.variants):
            raise ValueError(
                f"label_smoothing: given {self.label_smoothing} with loss_type {given}, which has none;"
                f" expected loss_type {', '.join(_SMOOTHED[:-1])} or {_SMOOTHED[-1]}; remove one of the two"
            )
        if "exo_pair" in self.variants and not self.label_smoothing:
            raise ValueError(
                "label_smoothing: given 0 with loss_type exo_pair, which takes its logarithm, expected more than 0;"
                " write for example 0.001"
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


@attrs.frozen(kw_only=True)
class KTOLossConfig(AnswerLossConfig):
    """Kahneman-Tversky Optimization (arXiv 2402.01306), for single answers that are desirable or not."""

    needs_reference: ClassVar[bool] = True

    loss_type: Literal["kto", "apo_zero_unpaired"] = field(default="kto")
    """Variant: ``kto`` compares with an estimate of the KL divergence from the reference, ``apo_zero_unpaired`` is
    APO-zero (arXiv 2408.06266), which needs none."""
    desirable_weight: float = field(default=1.0, validator=above(0))
    """Factor of the losses of desirable answers, for data with fewer of them."""
    undesirable_weight: float = field(default=1.0, validator=above(0))
    """Factor of the losses of undesirable answers."""

    @property
    def estimates_kl(self) -> bool:
        """Whether the loss needs an estimate of the KL divergence, from answers to other prompts."""
        return self.loss_type == "kto"


@attrs.frozen(kw_only=True)
class RewardLossConfig:
    """Bradley-Terry: the score of the chosen answer is to be above that of the rejected one."""

    center_rewards_coefficient: float = field(default=0.0, validator=at_least(0))
    """Factor of the squared sum of the scores of a pair, which keeps them around 0 (arXiv 2312.09244); TRL recommends
    0.01."""

    @property
    def hides_logits(self) -> str:
        """Recipe setting to suggest where a plugin needs logits: there is none."""
        return "choose another trainer type"
