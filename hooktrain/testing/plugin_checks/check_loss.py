"""Checks that a loss is a sum: a micro-batch that holds each sequence twice has twice the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hooktrain.markers import hookimpl
from hooktrain.testing.plugin_checks.kit import Broken, Kit, NotApplicable
from hooktrain.testing.plugin_checks.plugin_reference import Spec, prepared
from hooktrain.training.trainer import Trainer
from hooktrain.types import Batch

__all__ = ["check_loss"]

_HOOKS = {"compute_loss", "count_batch", "make_loss"}
_RELATIVE = 0.02
"""Largest relative difference, which leaves room for sums in bf16; a mean differs by a half."""


def check_loss(kit: Kit) -> None:
    """Check that the loss, its denominator and its other sums double when each sequence of a micro-batch does."""
    if not _HOOKS & set(kit.facts["hooks"] or ()):
        raise NotApplicable(f"the plugin implements none of {', '.join(sorted(_HOOKS))}")
    done = kit.start("loss", f"{__name__}:_measure", spec=kit.spec)
    measured: Mapping[str, Sequence[float]] = kit.need(done, "computing the loss of a micro-batch, and of it twice,")
    for name, (once, twice) in measured.items():
        if abs(twice - 2 * once) > _RELATIVE * abs(2 * once):
            raise Broken(
                f"{name}: {once:g} for a micro-batch, and {twice:g} for one that holds each of its sequences twice,"
                f" expected {2 * once:g}",
                "a loss is a sum over what its denominator counts, and only the engine divides it, so that the training"
                " does not depend on how a batch is divided into micro-batches and ranks",
                "return LossSum(total=<the sum over the micro-batch>, denominator), as with reduction='sum', and never"
                " a mean; pass conformance(skip={'loss': '...'}) where a loss compares sequences of a micro-batch with"
                " each other",
            )
    kit.notes["loss"] = f"{', '.join(measured)} double with the micro-batch"


class _Doubled:
    """Computes the loss of the first micro-batch, and of one that holds each of its sequences twice."""

    def __init__(self) -> None:
        self.measured: dict[str, list[float]] = {}

    @hookimpl(trylast=True)
    def on_step_start(self, trainer: Trainer, batches: Sequence[Batch]) -> None:
        trainer.model.eval()
        with torch.no_grad():
            for batch in _once_and_twice(trainer, batches[0]):
                counts = trainer.count(batch)
                loss = trainer.loss_of(trainer.on_device(batch), counts)
                found: dict[str, Tensor | float] = {"total": loss.total, "denominator": counts.denominator, **loss.sums}
                for name, value in found.items():
                    self.measured.setdefault(name, []).append(float(value))
        trainer.model.train()


def _once_and_twice(trainer: Trainer, batch: Batch) -> tuple[Batch, Batch]:
    """Return a micro-batch, and one with each of its sequences twice.

    Only the data's ``collate`` knows what a denominator of its own counts, and where each sequence of a row belongs.
    """
    data, number = trainer.data, trainer.recipe.micro_batch_size
    if "denominator" in batch and data.loader is None:
        rows = [data.train[place] for place in range(min(number, len(data.train)))]
        return data.collate(rows), data.collate(rows + rows)
    return batch, {name: _twice(name, value) for name, value in batch.items()}


def _twice(name: str, value: Any) -> Any:
    """Return a part of a micro-batch, whose first dimension is sequences, with each sequence twice."""
    if isinstance(value, Tensor) and value.dim():
        return torch.cat([value, value])
    if isinstance(value, (list, tuple)):
        return [*value, *value]
    return 2 * value if name == "tokens" else value


def _measure(spec: Spec) -> dict[str, list[float]]:
    """Run one step of the recipe; in a process of its own."""
    torch.set_num_threads(1)
    doubled = _Doubled()
    overrides = {"run_dir": "run", "train_iters": 1, "epochs": None, "checkpoint": [], "eval_interval": 0}
    made = prepared(spec, "with", doubled, overrides=overrides)
    Trainer(made.recipe, made.host).run()
    return doubled.measured
