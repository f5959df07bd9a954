"""Evaluates the plain mean of the weights since the first step (Izmailov et al., 2018)."""

from __future__ import annotations

from collections.abc import Generator, Mapping

import torch
from hooktrain import Trainer, hookimpl
from torch.optim.swa_utils import AveragedModel

_averaged: list[AveragedModel] = []


@hookimpl
def on_step_end(trainer: Trainer) -> None:
    if not _averaged:
        _averaged.append(AveragedModel(trainer.model))
    _averaged[0].update_parameters(trainer.model)


@hookimpl(wrapper=True)
def run_evaluate(trainer: Trainer) -> Generator[None, Mapping[str, float], Mapping[str, float]]:
    if not _averaged:
        return (yield)
    kept = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with torch.no_grad():
        trainer.model.load_state_dict(_averaged[0].module.state_dict())
    try:
        return (yield)
    finally:
        trainer.model.load_state_dict(kept)
