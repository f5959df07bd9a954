"""Cosines between the gradients of a loss and of its terms, by layer: whether they pull in different directions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hooktrain.training.trainer import Trainer
    from hooktrain.types import LossTerm

__all__ = ["GradientConflicts", "layer_of"]

_LAYER = re.compile(r"(.*?\.\d+)\.")
"""The name of a layer in that of a parameter: up to the first number."""


def layer_of(parameter: str) -> str:
    """Return the layer of a parameter, such as ``model.layers.3``; its module where its name has no number."""
    found = _LAYER.match(parameter)
    return found[1] if found else parameter.rpartition(".")[0] or parameter


class GradientConflicts:
    """Compares the gradients of the loss and of its terms in every ``interval``-th step.

    Each is computed apart from the others, from the graph that the backward pass uses afterwards, and summed over the
    accumulation window and the ranks. The gradients that train are not touched.

    Args:
        trainer: with all parts built.
        interval: optimizer steps from one comparison to the next.

    Attributes:
        found: the cosines of the latest comparison by the name of a metric, each of shape () and on the device.
        skipped: terms without a gradient of their own, as a fused kernel computes them with the loss.
    """

    def __init__(self, trainer: Trainer, interval: int) -> None:
        self._sum, self._interval = trainer.strategy.sum_tensor, interval
        trained = [(name, each) for name, each in trainer.model.named_parameters() if each.requires_grad]
        self._layers = [layer_of(name) for name, _ in trained]
        self._parameters = [each for _, each in trained]
        self._gradients: dict[str, list[Tensor]] = {}
        self.found: dict[str, Tensor] = {}
        self.skipped: set[str] = set()

    def add(self, trainer: Trainer, parts: Mapping[str, Tensor], terms: Mapping[str, LossTerm]) -> None:
        """Take up a micro-batch before its backward pass, in a step that is compared. Collective with the last one.

        Args:
            trainer: of the run.
            parts: the loss and each term, with its coefficient, as they are added.
            terms: all terms, those that the loss includes among them.
        """
        if (trainer.global_step + 1) % self._interval:
            return
        self.skipped |= {name for name, term in terms.items() if term.in_loss}
        for name, part in parts.items():
            found = torch.autograd.grad(part, self._parameters, retain_graph=True, allow_unused=True)
            kept = self._gradients.setdefault(name, [torch.zeros_like(each) for each in self._parameters])
            for total, gradient in zip(kept, found, strict=True):
                if gradient is not None:
                    total.add_(gradient)
        if trainer.is_last_microbatch:
            self.found, self._gradients = self._cosines(), {}

    def _cosines(self) -> dict[str, Tensor]:
        gradients = {name: [self._sum(each) for each in kept] for name, kept in self._gradients.items()}
        squares = {name: self._by_layer(kept, kept) for name, kept in gradients.items()}
        made = {}
        for one, two in combinations(gradients, 2):
            products = self._by_layer(gradients[one], gradients[two])
            for layer, product in products.items():
                norm = (squares[one][layer] * squares[two][layer]).sqrt()
                name = f"cosine/{one}/{two}" + (f"/{layer}" if layer else "")
                made[name] = torch.where(norm > 0, product / norm, 0.0)
        return made

    def _by_layer(self, one: Sequence[Tensor], two: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the inner products of two gradients by layer, and that of all parameters under an empty name."""
        found: dict[str, Tensor] = {}
        for layer, a, b in zip(self._layers, one, two, strict=True):
            product = (a.double() * b.double()).sum()
            found[layer] = found[layer] + product if layer in found else product
        return {"": torch.stack([*found.values()]).sum(), **found}
