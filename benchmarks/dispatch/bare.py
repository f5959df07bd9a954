"""Driver of the bare training loop.

The specification: ``chunks`` of a hundred steps, ``threads``, ``log_every`` so many steps a line is written (null for
never), ``loader`` (torch's ``DataLoader``, or ``slices`` of the list of rows) and ``groups`` of the optimizer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.dispatch.common import ROWS, Chunks, adamw, found, layer, loss_of, make_rows
from hooktrain.bench.driver import drive


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Train one epoch."""
    torch.set_num_threads(given["threads"])
    clock, rows = Chunks(), make_rows(given["chunks"])
    batches: Iterable[dict[str, Tensor]]
    if given["loader"] == "slices":
        batches = (clock(rows[at : at + ROWS]) for at in range(0, len(rows), ROWS))
    else:
        batches = torch.utils.data.DataLoader(rows, ROWS, collate_fn=clock)  # type: ignore[arg-type]
    model = layer()
    optimizer = adamw(model, given["groups"])
    every = given["log_every"]
    since: list[Tensor] = []
    with Path("metrics.jsonl").open("w", encoding="utf-8") as log:
        for step, batch in enumerate(batches, 1):
            loss = loss_of(model, batch["x"])
            torch.autograd.backward(loss)
            logs = every and step % every == 0
            if logs:
                norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if every:
                since.append(loss.detach())
            if logs:
                mean = (torch.stack(since).mean() if every > 1 else loss).item()
                since.clear()
                line = {"step": step, "loss": mean, "grad_norm": norm.item(), "lr": optimizer.param_groups[0]["lr"]}
                log.write(json.dumps(line) + "\n")
    return found(model, clock)


if __name__ == "__main__":
    drive(measure, "torch")
