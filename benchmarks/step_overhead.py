"""What a step through the engine costs beyond the same step in a bare PyTorch loop, on one small linear layer.

    python benchmarks/step_overhead.py [--steps 2000] [--rounds 15] [--json FILE]

Both sides train the same layer on the same ready micro-batches with the same optimizer; neither clips. Rounds alternate
(bare, engine, engine, bare) in one process, and the figure is the ratio of the medians of microseconds per step, with
the interval that holds 95% of bootstrap samples.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
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

    def __init__(self, batches: list[torch.Tensor]) -> None:
        self.batches = batches

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
        return Data(train=self.batches, collate=lambda rows: {"x": rows[0]}, shuffle=False)  # type: ignore[arg-type]

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


def bare(batches: list[torch.Tensor], make_optimizer: Callable[[torch.nn.Module], Any]) -> float:
    """Microseconds per step of the plain loop."""
    torch.manual_seed(0)
    model = torch.nn.Linear(WIDTH, WIDTH)
    optimizer = make_optimizer(model)
    began = time.perf_counter()
    for x in batches:
        loss = ((model(x) - x) ** 2).sum() / ROWS
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (time.perf_counter() - began) / len(batches) * 1e6


class Clock:
    """A plugin that takes the time of the whole training."""

    seconds = 0.0

    @hookimpl(trylast=True)
    def on_train_start(self) -> None:
        self.began = time.perf_counter()

    @hookimpl(tryfirst=True)
    def on_train_end(self) -> None:
        self.seconds = time.perf_counter() - self.began


def engine(batches: list[torch.Tensor], run_dir: Path, log_interval: int, observers: int) -> float:
    """Microseconds per step of the same through hooktrain, console and ``metrics.jsonl`` included."""
    clock = Clock()
    recipe = {
        "type": "linear",
        "run_dir": str(run_dir),
        "log_interval": log_interval,
        "gradient_clipping": 0.0,
        "optimizer": {"lr": 1e-3, "weight_decay": 0.0},
        "strategy": {"dtype": "fp32", "device": "cpu"},
        "console": {"interval": 10**9},
    }
    made, host = load(recipe, plugins=[LinearLayer(batches), clock, *(Observer() for _ in range(observers))])
    Trainer(made, host).run()
    return clock.seconds / len(batches) * 1e6


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
    batches = [torch.randn(ROWS, WIDTH, generator=generator) for _ in range(given.steps)]

    def optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
        parameters = [[p for p in model.parameters() if p.dim() >= 2], [p for p in model.parameters() if p.dim() < 2]]
        groups = [{"params": group, "weight_decay": 0.0} for group in parameters]
        return torch.optim.AdamW(groups, lr=1e-3, fused=True)

    cases = {"log every 10 steps": (10, 0), "log every step": (1, 0), "log every 10 steps, 10 observers": (10, 10)}
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (log_interval, observers)) in enumerate(cases.items()):
            sides: dict[str, list[float]] = {"bare": [], "engine": []}
            for round_ in range(given.rounds + 1):
                for side in ("bare", "engine", "engine", "bare"):
                    where = Path(folder) / str(number)
                    took = (
                        bare(batches, optimizer) if side == "bare" else engine(batches, where, log_interval, observers)
                    )
                    if round_:  # the first round warms up
                        sides[side].append(took)
            ratio, low, high = interval(sides["engine"], sides["bare"])
            medians = {side: round(statistics.median(times), 1) for side, times in sides.items()}
            results.append({"case": name, "us_per_step": medians, "ratio": ratio, "low": low, "high": high})
            print(
                f"{name:34} bare {medians['bare']:6.1f} us  engine {medians['engine']:6.1f} us  ratio {ratio:.3f}"
                f" ({low:.3f} to {high:.3f})"
            )
    if given.json:
        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
        given.json.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
