"""Losses of pairs, as functions of the log-probabilities of their answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import attrs
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from hooktrain_preference.loss_config import (
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


Terms = tuple[Tensor, Tensor, Tensor] | tuple[Tensor, Tensor, Tensor, Mapping[str, Tensor]]
"""The losses of the pairs, and the rewards of their chosen and rejected answers; and further values to log by name.
Each of shape (pairs,)."""


def _dpo(config: DPOLossConfig, pairs: Pairs) -> Terms:
    chosen, rejected = (config.beta * ratio for ratio in pairs.ratios)
    parts = {name: _DPO[name](config, pairs) for name in config.variants}
    if isinstance(config.loss_type, str):
        return parts[config.loss_type], chosen, rejected
    total = torch.stack([weight * parts[name] for name, weight in config.variants.items()]).sum(0)
    return total, chosen, rejected, {f"loss/{name}": part for name, part in parts.items()}


def _margins(config: DPOLossConfig, pairs: Pairs) -> Tensor:
    chosen, rejected = pairs.ratios
    return config.beta * (chosen - rejected)


def _sigmoid(config: DPOLossConfig, pairs: Pairs) -> Tensor:
    margins, smoothing = _margins(config, pairs), config.label_smoothing
    return -(1 - smoothing) * logsigmoid(margins) - smoothing * logsigmoid(-margins)


def _robust(config: DPOLossConfig, pairs: Pairs) -> Tensor:
    margins, smoothing = _margins(config, pairs), config.label_smoothing
    return (-(1 - smoothing) * logsigmoid(margins) + smoothing * logsigmoid(-margins)) / (1 - 2 * smoothing)


def _sigmoid_norm(config: DPOLossConfig, pairs: Pairs) -> Tensor:
    chosen, rejected = pairs.mean_ratios
    return -logsigmoid(config.beta * (chosen - rejected))


def _ipo(config: DPOLossConfig, pairs: Pairs) -> Tensor:
    chosen, rejected = pairs.mean_ratios
    return (chosen - rejected - 1 / (2 * config.beta)) ** 2


def _hinge(config: DPOLossConfig, pairs: Pairs) -> Tensor:
    return (1 - _margins(config, pairs)).relu()


def _exo_pair(config: DPOLossConfig, pairs: Pairs) -> Tensor:
    margins, smoothing = _margins(config, pairs), config.label_smoothing
    right = margins.sigmoid() * (logsigmoid(margins) - math.log1p(-smoothing))
    return right + (-margins).sigmoid() * (logsigmoid(-margins) - math.log(smoothing))


def _nca_pair(config: DPOLossConfig, pairs: Pairs) -> Tensor:
    chosen, rejected = (config.beta * ratio for ratio in pairs.ratios)
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def _bco_pair(config: DPOLossConfig, pairs: Pairs) -> Tensor:
    chosen, rejected = pairs.ratios
    return -logsigmoid(config.beta * chosen) - logsigmoid(-config.beta * rejected)


def _sppo_hard(config: DPOLossConfig, pairs: Pairs) -> Tensor:
    chosen, rejected = pairs.ratios
    return (chosen - 0.5 / config.beta) ** 2 + (rejected + 0.5 / config.beta) ** 2


def _apo_zero(config: DPOLossConfig, pairs: Pairs) -> Tensor:
    chosen, rejected = pairs.ratios
    return (-config.beta * chosen).sigmoid() + (config.beta * rejected).sigmoid()


def _apo_down(config: DPOLossConfig, pairs: Pairs) -> Tensor:
    return (config.beta * pairs.ratios[0]).sigmoid() + (-_margins(config, pairs)).sigmoid()


def _discopop(config: DPOLossConfig, pairs: Pairs) -> Tensor:
    margins = _margins(config, pairs)
    mixed = (margins / config.discopop_tau).sigmoid()
    return -logsigmoid(margins) * (1 - mixed) + (-margins).exp() * mixed


def _sft(config: DPOLossConfig, pairs: Pairs) -> Tensor:
    return -pairs.chosen / pairs.chosen_tokens


_DPO: Mapping[str, Callable[[DPOLossConfig, Pairs], Tensor]] = {
    "sigmoid": _sigmoid,
    "sigmoid_norm": _sigmoid_norm,
    "hinge": _hinge,
    "ipo": _ipo,
    "robust": _robust,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "bco_pair": _bco_pair,
    "sppo_hard": _sppo_hard,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
    "sft": _sft,
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
