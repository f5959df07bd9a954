from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hooktrain import ModelError, Trainer, hookimpl
from torch import Tensor

import freeze

Run = Callable[..., Trainer]


class Before:
    """Keeps the weights as they were built."""

    weights: dict[str, Tensor]

    @hookimpl
    def on_train_start(self, trainer: Trainer) -> None:
        named = trainer.model.state_dict().items()
        self.weights = {name: each.clone() for name, each in named}


def test_the_rest_stays_as_it_is(run_tiny: Run) -> None:
    before = Before()
    trainer = run_tiny(freeze, before, freeze={"all_but": ["head.*"]})
    for name, weight in trainer.model.state_dict().items():
        same = torch.equal(weight, before.weights[name])
        assert same == (not name.startswith("head.")), name


def test_a_pattern_without_a_weight_is_refused(run_tiny: Run) -> None:
    with pytest.raises(ModelError, match=r"did you mean 'head\.weight'\?"):
        run_tiny(freeze, freeze={"all_but": ["heed.weight"]})
