"""The layer, the data and the optimizer of all variants, and the clock that times them.

Peers import this in their own environments: it needs only torch.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["CHUNK", "LR", "ROWS", "WIDTH", "Chunks", "adamw", "found", "layer", "loss_of", "make_rows"]

WIDTH, ROWS = 32, 8
"""Features of a row, and rows of a step."""
CHUNK = 100
"""Steps between two readings of the clock."""
LR = 1e-5
"""Small enough that after ten thousand steps the layer still learns, so that weights reveal a difference."""


class Chunks:
    """The collate function of every variant, called once per step, which reads the clock at every hundredth call.

    Reading the clock in each step would be measurable. Libraries that fetch a micro-batch ahead are a step early at
    both ends of a chunk, so that the time between is that of as many steps.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def __call__(self, rows: list[Tensor]) -> dict[str, Tensor]:
        """Stack rows of shape (width,) to a micro-batch of shape (rows, width)."""
        if self.calls % CHUNK == 0:
            self.wall.append(time.perf_counter())
            self.cpu.append(time.process_time())
        self.calls += 1
        return {"x": torch.stack(rows)}

    def findings(self) -> dict[str, list[float]]:
        """Return ``seconds`` and ``cpu_seconds`` per step, with an entry for each chunk."""
        pairs = {"seconds": self.wall, "cpu_seconds": self.cpu}
        return {name: [(b - a) / CHUNK for a, b in pairwise(at)] for name, at in pairs.items()}


def make_rows(chunks: int) -> list[Tensor]:
    """Return the rows of an epoch, each of shape (width,), which every variant reads in this order."""
    generator = torch.Generator().manual_seed(1)
    return list(torch.randn((chunks * CHUNK + 1) * ROWS, WIDTH, generator=generator).unbind())


def layer() -> nn.Linear:
    """Return the model, always with the same weights."""
    torch.manual_seed(0)
    return nn.Linear(WIDTH, WIDTH)


def loss_of(model: Any, x: Tensor) -> Tensor:
    """Return the squared difference between the layer's output and its input of shape (rows, width), per row."""
    total: Tensor = ((model(x) - x) ** 2).sum() / ROWS
    return total


def adamw(model: nn.Module, groups: int = 2) -> torch.optim.AdamW:
    """Return PyTorch's fused AdamW; by default with two groups, as hooktrain and transformers make them."""
    if groups == 1:
        return torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=True)
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    made = [{"params": matrices, "weight_decay": 0.0}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(made, lr=LR, fused=True)


def found(model: nn.Linear, clock: Chunks, **more: Any) -> dict[str, Any]:
    """Return a driver's findings: times, and the result of the training.

    ``moved`` is the change of eight weights of the diagonal; ``loss`` is that of the trained layer on other rows.
    """
    with torch.no_grad():
        moved = (model.weight - layer().weight).diagonal()[:: WIDTH // 8]
        probe = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(2))
        loss = loss_of(model, probe).item()
    return {**clock.findings(), "moved": moved.tolist(), "loss": loss, "steps": clock.calls, **more}
