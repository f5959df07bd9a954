"""One rank of two raises in each kind of hook: all end, and the first line names plugin, hook and rank."""

from __future__ import annotations

import re

import pytest

from tests.facts import facts

RAISES = """
import os

@hookimpl{how}
def {hook}({parameters}):
    if os.environ.get("RANK") == "1":
        raise KeyError("out of luck")
    {rest}

@hookimpl
def on_teardown():
    note(teardown=True)
"""
OBSERVERS = {
    "a check": ("check_recipe", "recipe", "return []"),
    "the run's begin": ("on_train_start", "trainer", "pass"),
    "a step": ("on_step_end", "trainer", "pass"),
    "gradients": ("on_optimizer_step_start", "trainer", "pass"),
    "an evaluation": ("on_evaluate_end", "trainer", "pass"),
    "a metric": ("collect_metrics", "trainer", "return {}"),
    "a state": ("collect_state", "trainer", "return {}"),
    "a checkpoint": ("on_checkpoint_end", "trainer", "pass"),
    "the run's end": ("on_train_end", "trainer", "pass"),
}
WRAPPERS = {
    "data": ("make_data", "config"),
    "the model": ("make_model", "config"),
    "a count": ("count_batch", "batch"),
    "the loss": ("compute_loss", "batch"),
    "the save": ("save_checkpoint", "trainer"),
}
CASES = {
    **{name: (hook, given, rest, "") for name, (hook, given, rest) in OBSERVERS.items()},
    **{name: (hook, given, "return (yield)", "(wrapper=True)") for name, (hook, given) in WRAPPERS.items()},
}


DEFAULT = ("the run's begin", "a step", "a metric", "a checkpoint", "data", "the loss")
"""A plain hook and a wrapper, before the first step, in a step and while all ranks save; the others are thorough."""


@pytest.mark.parametrize(
    ("hook", "parameters", "rest", "how"),
    [
        pytest.param(*case, id=name, marks=[] if name in DEFAULT else [pytest.mark.thorough])
        for name, case in CASES.items()
    ],
)
def test_one_rank_raises(run_ranks, rank_notes, hook, parameters, rest, how):
    source = RAISES.format(hook=hook, parameters=parameters, rest=rest, how=how)
    run = run_ranks(
        2,
        source,
        strategy={"dtype": "fp32", "device": "cpu", "timeout": 15},
        checkpoint={"type": "full", "save_every_n_steps": 2},
    )
    assert run.status == 1, run.output
    first = next(line for line in run.output.splitlines() if line.startswith("hooktrain: rank"))
    assert first.startswith("hooktrain: rank 1: ")
    assert "KeyError: 'out of luck'" in first
    if hook != "check_recipe":  # before there is a run, there is nothing to tear down
        assert re.search(facts("plugin 'extra'", f"hook {hook}", "step "), first)
        assert {"teardown": True} in rank_notes(1)
