"""Tests of the plugin as it is used: installed, named in a recipe, and run."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hooktrain import RecipeError, Trainer
from hooktrain.testing import Recorder, conformance

Run = Callable[..., Trainer]  # run_tiny, of hooktrain.testing: a real run of a tiny model, in milliseconds

SCHEDULE = {"type": "PLUGIN_name", "warmup_steps": 4}

# the rules for every plugin: no device sync between log lines, an exact resume, equal ranks, and more
test_conformance = conformance("PLUGIN_name", settings={"scheduler": SCHEDULE})


def test_the_schedule_rises_and_falls(run_tiny: Run) -> None:
    recorder = Recorder()
    run_tiny(recorder, optimizer={"lr": 1.0}, scheduler=SCHEDULE)
    rates = [line["lr"] for line in recorder.metrics]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[6] == pytest.approx(math.sqrt(4 / 7))


def test_a_mistake_in_the_recipe_is_explained(run_tiny: Run) -> None:
    with pytest.raises(RecipeError, match=r"scheduler\.warmup_stps: unknown key \(did you mean 'warmup_steps'\?\)"):
        run_tiny(scheduler={"type": "PLUGIN_name", "warmup_stps": 4})
    with pytest.raises(RecipeError, match=r"PLUGIN_name\.decay: given 2\.0"):
        run_tiny(**{"PLUGIN_name": {"decay": 2.0}})


def test_the_running_mean(run_tiny: Run) -> None:
    recorder = Recorder()
    run_tiny(recorder, **{"PLUGIN_name": {"decay": 0.75}})
    expected = recorder.metrics[0]["loss"]
    for line in recorder.metrics[1:]:
        expected = 0.75 * expected + 0.25 * line["loss"]
        assert line["PLUGIN_name/loss"] == pytest.approx(expected)


def test_the_mean_survives_a_resume(run_tiny: Run) -> None:
    first, resumed = Recorder(), Recorder()
    checkpoint = [{"type": "full", "save_every_n_steps": 3}]
    trainer = run_tiny(first, checkpoint=checkpoint)
    path = trainer.run_dir / "checkpoints" / "step-00000003"
    run_tiny(resumed, checkpoint=checkpoint, trainer={"resume_from": path})
    means = [line["PLUGIN_name/loss"] for line in first.metrics]
    assert [line["PLUGIN_name/loss"] for line in resumed.metrics] == means[3:]
