from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hooktrain import Trainer
from hooktrain.testing import conformance

from patience import Patience

Run = Callable[..., Trainer]

# a rate of 0: no evaluation is better than the first
STANDING: dict[str, Any] = {
    "optimizer": {"lr": 0.0},
    "eval_interval": 1,
    "patience": {"evaluations": 4},
    "checkpoint": [{"type": "full", "save_every_n_steps": 1}],
}


def test_the_run_ends_when_nothing_gets_better(run_tiny: Run) -> None:
    trainer = run_tiny(Patience(), **STANDING)
    assert trainer.global_step == 5
    assert "4 evaluations ago" in str(trainer.state.stop_reason)


def test_a_resumed_run_has_waited_already(run_tiny: Run) -> None:
    run_tiny(Patience(), **STANDING, exit_iteration=3)
    newest = {
        **STANDING,
        "checkpoint": [{"type": "full", "auto_resume": True}],
    }
    trainer = run_tiny(Patience(), **newest)
    assert trainer.global_step == 5, "it waited 2 before, and 2 after"


test_conformance = conformance(
    Patience, settings={"eval_interval": 2, "patience": {"evaluations": 9}}
)
