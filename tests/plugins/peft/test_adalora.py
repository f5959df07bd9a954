"""AdaLoRA: the term that PEFT adds to a model's own loss, and the ranks that move."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hooktrain import ModelError, RecipeError, hookimpl
from hooktrain.testing import Recorder
from tests.facts import facts

ADALORA = {"type": "adalora", "r": 4, "config": {"target_r": 2, "orth_reg_weight": 0.5}}


class Kept:
    """Keeps a copy of the model as it is at the beginning of each step."""

    def __init__(self) -> None:
        self.models: list[Any] = []

    @hookimpl
    def on_step_start(self, trainer: Any) -> None:
        self.models.append(copy.deepcopy(trainer.model))


def test_the_term_is_pefts_own(run: Callable[..., Any]) -> None:
    kept, recorder = Kept(), Recorder()
    run(kept, recorder, peft=ADALORA, train_iters=6, gradient_accumulation_steps=2)
    for model, line in zip(kept.models, recorder.metrics, strict=True):
        ids = torch.arange(8)[None] % 5
        own = model(input_ids=ids, labels=ids).loss  # PEFT adds the term where there are labels
        model.active_peft_config.orth_reg_weight = 0.0
        plain = model(input_ids=ids, labels=ids).loss
        assert line["orthogonality"] == pytest.approx(float(own - plain) / 0.5, rel=1e-3)
        assert line["loss"] > 0.5 * line["orthogonality"]


def test_ranks_shrink_to_the_target(run: Callable[..., Any]) -> None:
    trainer = run(peft=ADALORA, train_iters=6)
    config = trainer.model.active_peft_config
    ranks = [sum(pattern) for pattern in config.rank_pattern.values()]
    assert config.total_step == 6 and config.init_r == 4
    assert 0 < sum(ranks) <= 2 * len(ranks)
    for name, values in trainer.model.named_parameters():
        if "lora_E" in name:
            pattern = config.rank_pattern[name.removeprefix("base_model.model.")]
            assert all(kept or value == 0 for kept, value in zip(pattern, values.detach()[:, 0], strict=True))


def test_what_does_not_fit(run: Callable[..., Any]) -> None:
    with pytest.raises(RecipeError, match=facts("peft.type: ", "adalora", "shards the weights")):
        run(peft=ADALORA, strategy={"dtype": "fp32", "device": "cpu", "data_parallel": "fsdp2"})
    with pytest.raises(ModelError, match=facts("peft.config", "tinit 3", "tfinal 3", "total_step 4")):
        run(peft={**ADALORA, "config": {"target_r": 2, "tinit": 3, "tfinal": 3}})
