"""What a step through the engine costs beyond the same step in a bare PyTorch loop, on one small linear layer.

    python benchmarks/step_overhead.py [--steps 2000] [--rounds 15] [--json FILE]

All sides train the same layer on the same rows, shuffled, eight a step, with the same optimizer; none clips. The bare
loop reads them through torch's DataLoader, as bare loops do; a second one takes ready micro-batches from a list, which
is as little as a loop can do. Rounds go forth and back through the sides in one process, and the figure is the ratio of
the medians of microseconds per step, with the interval that holds 95% of bootstrap samples.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import attrs
import torch

from hooktrain import BatchCounts, Data, LossSum, Trainer, TrainerType, hookimpl
from hooktrain.build import load

WIDTH, ROWS = 32, 8


@attrs.frozen
class Nothing:
    """A part without settings."""


class LinearLayer:
    """A plugin: the trainer type ``linear``, one layer that learns to copy its input."""

    def __init__(self, rows: list[torch.Tensor]) -> None:
        self.rows = rows

    @hookimpl
    def register_configs(self) -> dict[str, dict[str, type]]:
        kinds = {kind: attrs.make_class(kind, {}, frozen=True) for kind in ("data", "model", "loss")}
        self.kinds = kinds
        return {kind: {"linear": made} for kind, made in kinds.items()}

    @hookimpl
    def register_trainer_types(self) -> dict[str, TrainerType]:
        own = {kind: ("linear",) for kind in ("data", "model", "loss")}
        return {
            "linear": TrainerType({**own, "optimizer": ("adamw",), "scheduler": ("constant",), "strategy": ("torch",)})
        }

    @hookimpl
    def make_data(self, config: Any) -> Data | None:
        return Data(train=self.rows, collate=collate)

    @hookimpl
    def make_model(self) -> torch.nn.Module:
        return torch.nn.Linear(WIDTH, WIDTH)

    @hookimpl
    def make_loss(self) -> Callable[..., LossSum]:
        def loss(model: torch.nn.Module, batch: dict[str, torch.Tensor], weight: int) -> LossSum:
            x = batch["x"]
            return LossSum(((model(x) - x) ** 2).sum(), weight)

        return loss

    @hookimpl
    def count_batch(self, batch: dict[str, torch.Tensor]) -> BatchCounts:
        return BatchCounts(ROWS, ROWS)


class Observer:
    """A plugin that hears every step and does nothing."""

    @hookimpl
    def on_step_start(self, trainer: Trainer) -> None: ...

    @hookimpl
    def on_step_end(self, trainer: Trainer) -> None: ...


def collate(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rows of shape (width,) to a micro-batch of shape (rows, width)."""
    return {"x": torch.stack(rows)}


def bare(batches: Iterable[dict[str, torch.Tensor]]) -> float:
    """Microseconds per step of the plain loop."""
    torch.manual_seed(0)
    model = torch.nn.Linear(WIDTH, WIDTH)
    groups = [{"params": [model.weight], "weight_decay": 0.0}, {"params": [model.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True)
    steps = 0
    began = time.perf_counter()
    for batch in batches:
        x = batch["x"]
        loss = ((model(x) - x) ** 2).sum() / ROWS
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps += 1
    return (time.perf_counter() - began) / steps * 1e6


class Clock:
    """A plugin that takes the time of the whole training."""

    seconds = 0.0

    @hookimpl(trylast=True)
    def on_train_start(self) -> None:
        self.began = time.perf_counter()

    @hookimpl(tryfirst=True)
    def on_train_end(self) -> None:
        self.seconds = time.perf_counter() - self.began


def engine(rows: list[torch.Tensor], run_dir: Path, log_interval: int, observers: int) -> float:
    """Microseconds per step of the same through hooktrain, ``metrics.jsonl`` included."""
    clock = Clock()
    recipe = {
        "type": "linear",
        "run_dir": str(run_dir),
        "micro_batch_size": ROWS,
        "log_interval": log_interval,
        "gradient_clipping": 0.0,
        "optimizer": {"lr": 1e-3, "weight_decay": 0.0},
        "strategy": {"dtype": "fp32", "device": "cpu"},
        "console": {"enabled": False},
    }
    made, host = load(recipe, plugins=[LinearLayer(rows), clock, *(Observer() for _ in range(observers))])
    Trainer(made, host).run()
    return clock.seconds / (len(rows) // ROWS) * 1e6


def interval(numerator: list[float], denominator: list[float]) -> tuple[float, float, float]:
    """Ratio of the medians, and its 95% bootstrap interval."""
    draw = random.Random(0)
    ratios = sorted(
        statistics.median(draw.choices(numerator, k=len(numerator)))
        / statistics.median(draw.choices(denominator, k=len(denominator)))
        for _ in range(2000)
    )
    return statistics.median(numerator) / statistics.median(denominator), ratios[50], ratios[-51]


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--steps", type=int, default=2000)
    words.add_argument("--rounds", type=int, default=15)
    words.add_argument("--json", type=Path)
    given = words.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    rows = list(torch.randn(ROWS * given.steps, WIDTH, generator=generator).unbind())
    ready = [collate(rows[at : at + ROWS]) for at in range(0, len(rows), ROWS)]
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder)
        sides: dict[str, Callable[[], float]] = {
            "bare loop": lambda: bare(torch.utils.data.DataLoader(rows, ROWS, shuffle=True, collate_fn=collate)),  # type: ignore[arg-type]
            "bare loop, ready batches": lambda: bare(ready),
            "hooktrain, log every 100 steps": lambda: engine(rows, run_dir, 100, 0),
            "hooktrain, log every 10 steps": lambda: engine(rows, run_dir, 10, 0),
            "hooktrain, log every step": lambda: engine(rows, run_dir, 1, 0),
            "hooktrain, log every 10, 10 observers": lambda: engine(rows, run_dir, 10, 10),
        }
        took: dict[str, list[float]] = {side: [] for side in sides}
        for round_ in range(given.rounds + 1):
            for side in [*sides, *reversed(sides)]:
                seconds = sides[side]()
                if round_:  # the first round warms up
                    took[side].append(seconds)
    results = []
    for side, times in took.items():
        ratio, low, high = interval(times, took["bare loop"])
        hard, *_ = interval(times, took["bare loop, ready batches"])
        median = statistics.median(times)
        results.append(
            {"side": side, "us_per_step": median, "ratio": ratio, "low": low, "high": high, "to_ready": hard}
        )
        print(f"{side:38} {median:6.1f} us/step  {ratio:.3f} ({low:.3f} to {high:.3f}) of bare, {hard:.2f} of ready")
    if given.json:
        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
        given.json.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
