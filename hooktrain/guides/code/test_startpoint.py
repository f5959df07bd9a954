from __future__ import annotations

from collections.abc import Callable

import pytest
from hooktrain import Trainer
from hooktrain.testing import Recorder

from startpoint import Startpoint

Run = Callable[..., Trainer]


def test_weights_stay_closer(run_tiny: Run) -> None:
    last = {}
    for coefficient in (1e-6, 1.0):
        recorder = Recorder()
        settings = {"coefficient": coefficient}
        run_tiny(Startpoint(), recorder, startpoint=settings, epochs=3)
        distances = [line["startpoint"] for line in recorder.metrics]
        assert distances[0] == 0.0
        last[coefficient] = distances[-1]
    assert 0 < last[1.0] < last[1e-6] / 2


def test_the_split_changes_nothing(run_tiny: Run) -> None:
    losses = []
    for size, accumulation in ((6, 1), (2, 3)):
        recorder = Recorder()
        run_tiny(
            Startpoint(),
            recorder,
            micro_batch_size=size,
            gradient_accumulation_steps=accumulation,
            startpoint={"coefficient": {"end": 1.0, "steps": 2}},
        )
        losses.append([line["loss"] for line in recorder.metrics])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
