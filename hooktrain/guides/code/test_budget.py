from __future__ import annotations

from collections.abc import Callable

import pytest
from hooktrain import RecipeError, Trainer
from hooktrain.testing import Recorder

import budget

Run = Callable[..., Trainer]


def test_the_budget_ends_the_run(run_tiny: Run) -> None:
    recorder = Recorder()
    trainer = run_tiny(budget, recorder, epochs=9, budget={"tokens": 50})
    assert trainer.state.stop_reason == "the budget of 50 tokens is spent"
    before, last = recorder.metrics[-2:]
    assert before["budget/spent"] < 1 <= last["budget/spent"]


def test_without_a_budget_nothing_changes(run_tiny: Run) -> None:
    recorder = Recorder()
    trainer = run_tiny(budget, recorder)
    assert trainer.state.stop_reason is None
    assert "budget/spent" not in recorder.metrics[-1]


def test_mistakes_are_refused(run_tiny: Run) -> None:
    with pytest.raises(RecipeError, match=r"did you mean 'tokens'\?"):
        run_tiny(budget, budget={"token": 50})
