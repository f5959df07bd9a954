"""The auxiliary loss of a mixture of experts."""

from __future__ import annotations

from typing import Any

import attrs
from torch import Tensor, nn

from hooktrain import LossTerm, ModelError
from hooktrain_sft.compat import auxiliary_loss, router_loss_coefficient

__all__ = ["RouterLoss"]


@attrs.frozen
class RouterLoss:
    """The model's own ``aux_loss``, which ``output_router_logits: true`` in its config requests, as a loss term.

    It is a property of a complete micro-batch. It is multiplied by the micro-batch's denominator, so that the engine's
    division by that of the step makes it a mean over tokens.

    Attributes:
        coefficient: factor in the training loss; evaluation does not add the loss.
    """

    coefficient: float

    @classmethod
    def of(cls, model: nn.Module) -> RouterLoss | None:
        """Read it from a model's config; None where that does not request it, which is transformers' default."""
        coefficient = router_loss_coefficient(model)
        return None if coefficient is None else cls(coefficient)

    def term(self, output: Any, total: Tensor, denominator: float) -> LossTerm:
        """Return the loss as a term.

        Args:
            output: the model's output.
            total: the loss without it, shape ().
            denominator: trained tokens of the micro-batch, or the sum of their weights.
        """
        found = auxiliary_loss(output)
        if not isinstance(found, Tensor):
            raise ModelError(
                "loss: the model's config says output_router_logits: true, but its output has no aux_loss; expected a"
                " model that computes one; remove output_router_logits from model.hf_config_kwargs"
            )
        return LossTerm(found.to(total.device, total.dtype) * denominator, self.coefficient)
