"""The auxiliary loss that keeps the experts of a mixture evenly used."""

from __future__ import annotations

from typing import Any

import attrs
from torch import Tensor, nn

from hooktrain import ModelError

__all__ = ["RouterLoss"]


@attrs.frozen
class RouterLoss:
    """The model's own ``aux_loss``, asked for with ``output_router_logits: true`` in its config.

    It is a property of a whole micro-batch. Times the micro-batch's supervised tokens, it comes out as their weighted
    mean when the engine divides by the tokens of the window.

    Attributes:
        coefficient: factor in the training loss; evaluation leaves it out.
    """

    coefficient: float

    @classmethod
    def of(cls, model: nn.Module) -> RouterLoss | None:
        """None where the config does not ask for it, as is transformers' default."""
        config: Any = getattr(model, "config", None)
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        if not (getattr(config, "output_router_logits", False) or getattr(text, "output_router_logits", False)):
            return None
        return cls(float(getattr(text, "router_aux_loss_coef", 0.0)))

    def added(
        self, output: Any, total: Tensor, sums: dict[str, Tensor], num_target_tokens: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss with this one, and what is logged with ``router_loss``.

        Args:
            output: what the model returned.
            total: the loss without it, shape ().
            sums: what is logged without it.
            num_target_tokens: trained tokens of the micro-batch.
        """
        found = getattr(output, "aux_loss", None)
        if not isinstance(found, Tensor):
            raise ModelError(
                "loss: the model's config says output_router_logits: true, but its output has no aux_loss; expected a"
                " model that computes one; take output_router_logits out of model.hf_config_kwargs"
            )
        found = found.to(total.device, total.dtype) * num_target_tokens
        if total.requires_grad:
            total = total + self.coefficient * found
        return total, {**sums, "router_loss": found.detach()}
