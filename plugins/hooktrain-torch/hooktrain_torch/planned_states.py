"""Sizes of small optimizer states for ``hooktrain plan``, which has neither values nor the libraries that keep them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

__all__ = ["PlannedStates", "in_blocks", "in_full", "of_rows_and_columns"]

_LEAST = 4096
"""Elements from which on torchao and bitsandbytes quantize states."""

Layout = Callable[[Parameter], dict[str, Tensor]]


class PlannedStates(Optimizer):
    """Stands in a plan for an optimizer: its step makes states of the right sizes and updates nothing.

    Args:
        groups: the parameter groups.
        layout: makes the states of one parameter.
    """

    def __init__(self, groups: list[dict[str, Any]], layout: Layout) -> None:
        self._layout = layout
        super().__init__(groups, {"lr": 0.0})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make the states."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = self._layout(parameter)


def in_full(states: int) -> Layout:
    """Return the layout of states in 32 bits."""
    return lambda p: {f"state{n}": torch.empty(p.shape) for n in range(states)}


def in_blocks(bits: int, states: int, block: int, *, ragged: bool) -> Layout:
    """Return the layout of states in a few bits, with a scale for each block.

    Args:
        bits: of each element.
        states: of each parameter.
        block: elements that share a scale.
        ragged: whether the last block of a parameter may be smaller; otherwise such a parameter has states in full.
    """

    def layout(parameter: Parameter) -> dict[str, Tensor]:
        count = parameter.numel()
        if count < _LEAST or (count % block and not ragged):
            return in_full(states)(parameter)
        made = {f"codes{n}": torch.empty(count * bits // 8, dtype=torch.uint8) for n in range(states)}
        return {**made, **{f"scale{n}": torch.empty(-(-count // block)) for n in range(states)}}

    return layout


def of_rows_and_columns(parameter: Parameter) -> dict[str, Tensor]:
    """Make the states of Adafactor: a number for each row and column of a matrix, and for each element of a vector."""
    shape = parameter.shape
    if len(shape) < 2:
        return {"variance": torch.empty(shape)}
    return {"row_var": torch.empty(*shape[:-1], 1), "col_var": torch.empty(*shape[:-2], 1, shape[-1])}
