"""``early_stopping``: when a run ends, over resumes too, and what is said when it never would."""

from __future__ import annotations

import re
from typing import Any

import pytest

from hooktrain import HooktrainError, hookimpl
from tests.facts import facts


class Evaluations:
    """Gives evaluations these values of a metric, step by step."""

    def __init__(self, *values: float) -> None:
        self.values = values

    @hookimpl(wrapper=True)
    def run_evaluate(self, trainer):
        yield
        return {"eval/held_out/loss": 1.0, "eval/held_out/score": self.values[trainer.global_step - 1]}


STOP: dict[str, Any] = {"patience": 2, "metric": "eval/held_out/score"}
RUN: dict[str, Any] = {"eval_interval": 1, "train_iters": 8}


@pytest.mark.parametrize(
    ("settings", "values", "steps"),
    [
        (STOP, (3, 2, 1, 1, 1, 0, 0, 0), 5),
        (STOP, (3, 2, 2.5, 1, 2, 0, 1, 1), 8),
        ({**STOP, "mode": "max"}, (1, 2, 3, 2, 3, 9, 9, 9), 5),
        ({**STOP, "threshold": 0.1}, (10, 9.5, 8, 7.9, 7.8, 1, 1, 1), 5),
        ({**STOP, "patience": 1}, (1, 1, 0, 0, 0, 0, 0, 0), 2),
        ({**STOP, "patience": 8}, (1,) * 8, 8),
        ({**STOP, "patience": 1}, (float("nan"),) + (1,) * 7, 1),
    ],
)
def test_a_run_ends_after_evaluations_without_improvement(run_tiny, settings, values, steps):
    trainer = run_tiny(Evaluations(*values), early_stopping=settings, on_nan="skip", **RUN)
    assert trainer.global_step == steps
    expected = facts("eval/held_out/score", "has not improved", "at step")
    assert steps == 8 or re.search(expected, trainer.state.stop_reason)


def test_a_resumed_run_goes_on_counting(run_tiny, tmp_path):
    values = Evaluations(3, 2, 2, 2, 2, 2, 2, 2)
    settings = {
        **RUN,
        "early_stopping": {**STOP, "patience": 3},
        "checkpoint": {"type": "full", "save_every_n_steps": 1},
    }
    run_tiny(values, exit_iteration=3, **settings)
    path = tmp_path / "run" / "checkpoints" / "step-00000003"
    rest = run_tiny(values, trainer={"resume_from": path}, run_dir=str(tmp_path / "rest"), **settings)
    assert rest.global_step == 5


def test_the_loss_is_the_default(run_tiny):
    trainer = run_tiny(Evaluations(*range(8)), early_stopping={"patience": 2}, **RUN)
    assert trainer.global_step == 3
    assert "the loss of the evaluation has not improved in 2 evaluations" in trainer.state.stop_reason


@pytest.mark.parametrize(
    ("settings", "more", "message"),
    [
        ({"metric": "eval/x"}, {}, ["early_stopping.patience", "never stops"]),
        ({"patience": 1}, {"eval_interval": 0}, ["early_stopping", "before the end", "eval_interval"]),
        ({"patience": 1, "metric": "eval/held_out/los"}, {}, ["early_stopping.metric", "'eval/held_out/loss'"]),
    ],
)
def test_what_would_wait_for_ever_is_refused(run_tiny, settings, more, message):
    with pytest.raises(HooktrainError) as caught:
        run_tiny(Evaluations(*range(8)), early_stopping=settings, **{**RUN, **more})
    assert re.search(facts(*message), str(caught.value))
