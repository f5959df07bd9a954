"""A step that runs its micro-batches in reverse order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hooktrain import Batch, StepOutput, Trainer, hookimpl


@hookimpl
def run_step(trainer: Trainer, batches: Sequence[Batch]) -> StepOutput:
    total = torch.zeros((), device=trainer.device)
    for batch in reversed(batches):
        total = total + trainer.microbatch(batch).total
    update = trainer.optimizer_step()
    return StepOutput(total, update.grad_norm, update.stepped)


@hookimpl
def on_train_end(trainer: Trainer) -> None:
    trainer.say("backwards has done the steps")
