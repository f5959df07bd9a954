"""Means of what single answers had to log, over desirable and over other answers, since the last log line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hooktrain import Strategy, World

__all__ = ["MetricsByLabel", "sums_by_label"]

_LABELS = ("chosen", "rejected")
_METRICS = ("rewards", "logps")


def sums_by_label(desirable: Tensor, rewards: Tensor, log_probs: Tensor) -> Tensor:
    """Return rewards and log-probabilities of desirable answers and of others, each added up, shape (2, 2)."""
    values = torch.stack([rewards, log_probs])  # (2, answers)
    return torch.stack([(values * mask).sum(1) for mask in (desirable, ~desirable)])


class MetricsByLabel:
    """Sums of micro-batches, of the training and of each evaluation set, kept on the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._numbers: dict[str, list[float]] = {}

    def add(self, name: str, sums: Tensor, numbers: Sequence[int]) -> None:
        """Add what a micro-batch has to log.

        Args:
            name: of the evaluation set; empty for the training.
            sums: as :func:`sums_by_label` returns them, on the device.
            numbers: of desirable answers and of others.
        """
        before = self._numbers.get(name, [0.0, 0.0])
        self._numbers[name] = [one + more for one, more in zip(before, numbers, strict=True)]
        self._sums[name] = self._sums[name] + sums if name in self._sums else sums

    def forget(self, names: Iterable[str]) -> None:
        """Drop the sums of evaluation sets."""
        for name in names:
            self._sums.pop(name, None)
            self._numbers.pop(name, None)

    def training(self, strategy: Strategy) -> dict[str, Tensor]:
        """Return the means since the last call, of shape () on the device, which nothing waits for. Collective."""
        return self._means("", strategy)

    def evaluation(self, names: Iterable[str], strategy: Strategy) -> dict[str, float]:
        """Return the means of evaluation sets as numbers. Collective."""
        found = {name: self._means(name, strategy) for name in names}
        return {
            f"eval/{name}/{metric}": float(value) for name, means in found.items() for metric, value in means.items()
        }

    def _means(self, name: str, strategy: Strategy) -> dict[str, Tensor]:
        """Return the means of a set and forget its sums; of a label that no answer has there are none."""
        numbers = strategy.sum_numbers(self._numbers.pop(name, [0.0, 0.0]))
        sums = strategy.sum_tensor(self._sums.pop(name, torch.zeros(2, 2, device=strategy.device)).float())
        made = {
            f"{metric}/{label}": sums[row, column] / numbers[row]
            for row, label in enumerate(_LABELS)
            for column, metric in enumerate(_METRICS)
            if numbers[row]
        }
        if all(numbers):
            made["rewards/margins"] = made["rewards/chosen"] - made["rewards/rejected"]
        return made

    def state(self, world: World) -> Mapping[str, Any] | None:
        """Return the training's sums for a checkpoint; None where there are none."""
        if "" not in self._sums:
            return None
        return {"sums": self._sums[""].cpu().clone(), "numbers": list(self._numbers[""]), "ranks": world.world_size}

    def restore(self, states: Sequence[Mapping[str, Any] | None], world: World, device: torch.device) -> None:
        """Take back the training's sums, on any number of ranks.

        Args:
            states: what :meth:`state` returned on each rank; a single one where all returned the same.
            world: this process.
            device: of the run.
        """
        self._sums.clear()
        self._numbers.clear()
        known = next((state for state in states if state), None)
        if known is None:
            return
        each = list(states) if len(states) == known["ranks"] else list(states) * known["ranks"]
        mine = [each[world.rank]] if len(each) == world.world_size else each if world.is_main else []
        for state in mine:
            if state:
                self.add("", state["sums"].to(device), state["numbers"])
