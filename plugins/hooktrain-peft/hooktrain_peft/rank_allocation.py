"""AdaLoRA: a term that keeps its factors orthogonal, and ranks that move between layers (Zhang et al., 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from hooktrain import LossTerm, ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from hooktrain import Trainer

__all__ = ["RankAllocation"]

_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""What PEFT's allocator keeps of the importance of each weight, by name."""


class RankAllocation:
    """The part of AdaLoRA that a forward pass does not do.

    Args:
        model: base and adapter.
        trainer: of the run.
        total_step: optimizer steps in which the ranks are distributed, as the recipe has them; by default all.

    Raises:
        ModelError: the phases without a change of ranks are as long as the run.
    """

    def __init__(self, model: Any, trainer: Trainer, total_step: int | None) -> None:
        self._tuner: Any = model.base_model
        self._config: Any = model.active_peft_config
        self._config.total_step = total_step or trainer.training_horizon
        between = self._config.total_step - self._config.tinit - self._config.tfinal
        if between <= 0:
            raise ModelError(
                f"peft.config: given tinit {self._config.tinit} and tfinal {self._config.tfinal} with total_step"
                f" {self._config.total_step}, expected steps between the two, in which ranks move; lower one of them"
            )
        name = f".{self._tuner.trainable_adapter_name}"
        found = [(each, weight) for each, weight in model.named_parameters() if name in each and weight.requires_grad]
        self._rows = [weight for each, weight in found if "lora_A" in each]
        self._columns = [weight for each, weight in found if "lora_B" in each]
        self._trained = dict(found)
        self._updated = False

    def term(self) -> LossTerm:
        """Return how far the factors are from orthogonal ones, as a mean over them."""
        device = self._rows[0].device.type
        with torch.autocast(device, enabled=False):
            products = [rows @ rows.T for rows in self._rows] + [columns.T @ columns for columns in self._columns]
            far = [
                torch.linalg.matrix_norm(each - torch.eye(len(each), out=torch.empty_like(each))) for each in products
            ]
            return LossTerm(torch.stack(far).mean(), float(self._config.orth_reg_weight))

    def note_update(self) -> None:
        """The optimizer updates the weights in this step."""
        self._updated = True

    def allocate(self, step: int) -> None:
        """Take up the importance of the weights after an update, and remove ranks where it is due.

        Args:
            step: its number, from 1.

        Raises:
            ModelError: the strategy keeps the gradients elsewhere.
        """
        updated, self._updated = self._updated, False
        if not updated:
            return
        without = next((name for name, weight in self._trained.items() if weight.grad is None), None)
        if without is not None:
            raise ModelError(
                f"peft.type: given adalora, which reads gradients, and '{without}' has none after the update; expected"
                " a strategy that leaves them with the weights, as torch and ZeRO 0 do; choose one, or type lora"
            )
        self._tuner.update_and_allocate(step)

    def state(self) -> dict[str, Any]:
        """Return what a resume needs besides the weights."""
        allocator = self._tuner.rankallocator
        made: dict[str, Any] = {name: dict(vars(allocator)[name]) for name in _AVERAGES}
        return {**made, "rank_pattern": dict(self._config.rank_pattern or {})}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state` returned."""
        own = dict(self._tuner.model.named_parameters())

        def placed(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: value.to(own[name].device) for name, value in values.items()}

        vars(self._tuner.rankallocator).update({name: placed(state[name]) for name in _AVERAGES})
        self._config.rank_pattern = dict(state["rank_pattern"]) or None
