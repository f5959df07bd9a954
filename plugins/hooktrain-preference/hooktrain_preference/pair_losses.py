"""Losses of pairs, as functions of the log-probabilities of their answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
from torch import Tensor
from torch.nn.functional import logsigmoid

from hooktrain_preference.config import (
    CPOLossConfig,
    DPOLossConfig,
    ORPOLossConfig,
    PairLossConfig,
    SimPOLossConfig,
)

__all__ = ["LOSSES", "Pairs", "Terms"]


@attrs.frozen(eq=False)
class Pairs:
    """Log-probabilities of pairs, each of shape (pairs,).

    Attributes:
        chosen: of the chosen answers, summed over their tokens.
        rejected: of the rejected answers.
        chosen_reference: of the chosen answers by the reference; 0 without one.
        rejected_reference: of the rejected answers by the reference; 0 without one.
        chosen_tokens: tokens of the chosen answers, or the sum of their weights.
        rejected_tokens: those of the rejected answers.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_reference: Tensor
    rejected_reference: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    @property
    def ratios(self) -> tuple[Tensor, Tensor]:
        """The log of how much likelier the answers are than by the reference."""
        return self.chosen - self.chosen_reference, self.rejected - self.rejected_reference

    @property
    def mean_ratios(self) -> tuple[Tensor, Tensor]:
        """The same, as means over the tokens."""
        chosen, rejected = self.ratios
        return chosen / self.chosen_tokens, rejected / self.rejected_tokens


Terms = tuple[Tensor, Tensor, Tensor]
"""The losses of the pairs, and the rewards of their chosen and rejected answers, each of shape (pairs,)."""


def _dpo(config: DPOLossConfig, pairs: Pairs) -> Terms:
    beta, smoothing = config.beta, config.label_smoothing
    chosen, rejected = pairs.ratios
    return _DPO[config.loss_type](pairs, beta, smoothing), beta * chosen, beta * rejected


def _sigmoid(pairs: Pairs, beta: float, smoothing: float) -> Tensor:
    chosen, rejected = pairs.ratios
    margins = beta * (chosen - rejected)
    return -(1 - smoothing) * logsigmoid(margins) - smoothing * logsigmoid(-margins)


def _robust(pairs: Pairs, beta: float, smoothing: float) -> Tensor:
    chosen, rejected = pairs.ratios
    margins = beta * (chosen - rejected)
    return (-(1 - smoothing) * logsigmoid(margins) + smoothing * logsigmoid(-margins)) / (1 - 2 * smoothing)


def _sigmoid_norm(pairs: Pairs, beta: float, smoothing: float) -> Tensor:
    chosen, rejected = pairs.mean_ratios
    return -logsigmoid(beta * (chosen - rejected))


def _ipo(pairs: Pairs, beta: float, smoothing: float) -> Tensor:
    chosen, rejected = pairs.mean_ratios
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def _hinge(pairs: Pairs, beta: float, smoothing: float) -> Tensor:
    chosen, rejected = pairs.ratios
    return (1 - beta * (chosen - rejected)).relu()


def _apo_zero(pairs: Pairs, beta: float, smoothing: float) -> Tensor:
    chosen, rejected = pairs.ratios
    return (-beta * chosen).sigmoid() + (beta * rejected).sigmoid()


def _apo_down(pairs: Pairs, beta: float, smoothing: float) -> Tensor:
    chosen, rejected = pairs.ratios
    return (beta * chosen).sigmoid() + (-beta * (chosen - rejected)).sigmoid()


_DPO: Mapping[str, Callable[[Pairs, float, float], Tensor]] = {
    "sigmoid": _sigmoid,
    "sigmoid_norm": _sigmoid_norm,
    "hinge": _hinge,
    "ipo": _ipo,
    "robust": _robust,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
}


def _simpo(config: SimPOLossConfig, pairs: Pairs) -> Terms:
    chosen, rejected = pairs.mean_ratios
    return -logsigmoid(config.beta * (chosen - rejected) - config.gamma), config.beta * chosen, config.beta * rejected


def _orpo(config: ORPOLossConfig, pairs: Pairs) -> Terms:
    chosen, rejected = pairs.mean_ratios
    odds = (chosen - _log1mexp(chosen)) - (rejected - _log1mexp(rejected))
    return -chosen - config.beta * logsigmoid(odds), config.beta * chosen, config.beta * rejected


def _log1mexp(value: Tensor) -> Tensor:
    """Return ``log(1 - exp(value))`` of negative values; a probability of 1 counts as one just below."""
    value = value.clamp(max=-1e-6)
    return (-value.expm1()).log()


def _cpo(config: CPOLossConfig, pairs: Pairs) -> Terms:
    chosen, rejected = pairs.ratios
    loss = -logsigmoid(config.beta * (chosen - rejected)) - config.cpo_alpha * pairs.mean_ratios[0]
    return loss, config.beta * chosen, config.beta * rejected


LOSSES: Mapping[type[PairLossConfig], Callable[..., Terms]] = {
    DPOLossConfig: _dpo,
    SimPOLossConfig: _simpo,
    ORPOLossConfig: _orpo,
    CPOLossConfig: _cpo,
}
"""The loss of each config class: from the config and the pairs to what is computed of them."""
