from __future__ import annotations

from collections.abc import Callable

import pytest
from hooktrain import Trainer
from hooktrain.testing import Recorder

import sharpness

Run = Callable[..., Trainer]


def losses(recorder: Recorder) -> list[float]:
    return [line["loss"] for line in recorder.metrics]


def test_each_microbatch_is_passed_twice(run_tiny: Run) -> None:
    recorder = Recorder()
    settings = {"sharpness": {"radius": 0.05}}
    run_tiny(sharpness, recorder, gradient_accumulation_steps=2, **settings)
    steps = recorder.hooks.count("on_step_end")
    assert recorder.hooks.count("on_optimizer_step_end") == steps
    # 13 sequences, two in a micro-batch: 7 micro-batches
    assert recorder.hooks.count("on_microbatch_end") == 2 * 7


def test_the_smaller_the_ball_the_plainer_the_step(run_tiny: Run) -> None:
    plain, small, large = Recorder(), Recorder(), Recorder()
    run_tiny(sharpness, plain)
    run_tiny(sharpness, small, sharpness={"radius": 1e-6})
    run_tiny(sharpness, large, sharpness={"radius": 1.0})
    assert losses(small) == pytest.approx(losses(plain), abs=1e-4)
    assert losses(large)[0] == losses(plain)[0]  # nothing has moved yet
    assert losses(large)[1:] != pytest.approx(losses(plain)[1:], abs=1e-4)
