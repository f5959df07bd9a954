from __future__ import annotations

import pytest
import torch
from hooktrain import RecipeError, hookimpl
from hooktrain.testing import Recorder, conformance

test_conformance = conformance(
    "ema",
    settings={"ema": {"decay": 0.7}},
    ignore=["eval/held_out/loss"],  # of the average
)


class Weights:
    """Keeps the weights after each step."""

    def __init__(self) -> None:
        self.steps = []

    @hookimpl
    def on_step_end(self, trainer):
        self.steps.append({name: each.clone() for name, each in trainer.model.state_dict().items()})


def averaged(steps, decay):
    made = {}
    for number, weights in enumerate(steps, 1):
        share = max(1 - decay, 1 / number)
        made = {name: share * each + (1 - share) * made.get(name, 0) for name, each in weights.items()}
    return made


def test_the_average_is_evaluated_and_exported_and_the_training_is_the_same(run_tiny):
    plain, recorder, weights = Recorder(), Recorder(), Weights()
    run_tiny(plain)
    trainer = run_tiny(recorder, weights, ema={"decay": 0.7})
    assert [line["loss"] for line in recorder.metrics] == [line["loss"] for line in plain.metrics]
    assert recorder.metrics[-1]["eval/held_out/loss"] != plain.metrics[-1]["eval/held_out/loss"]
    expected = averaged(weights.steps, 0.7)
    for name, value in trainer.strategy.full_state_dict(trainer.model).items():
        torch.testing.assert_close(value, expected[name])
        assert torch.equal(trainer.model.state_dict()[name], weights.steps[-1][name]), "restored after the evaluation"


def test_sharded_weights_are_refused(run_tiny):
    with pytest.raises(RecipeError, match=r"ema\.decay: works with strategy"):
        run_tiny(ema={"decay": 0.7}, strategy={"data_parallel": "fsdp2", "device": "cpu"})
