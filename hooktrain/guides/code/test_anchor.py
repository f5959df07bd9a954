from __future__ import annotations

from collections.abc import Callable

import torch
from hooktrain import Trainer
from hooktrain.testing import Recorder

import anchor

Run = Callable[..., Trainer]


def test_it_keeps_the_model_close(run_tiny: Run) -> None:
    last = {}
    for beta in (0.01, 10.0):
        recorder = Recorder()
        run_tiny(anchor, recorder, anchor={"beta": beta}, epochs=3)
        divergences = [line["divergence"] for line in recorder.metrics]
        assert divergences[0] == 0.0, "they begin as the same model"
        last[beta] = divergences[-1]
    assert 0 < last[10.0] < last[0.01] / 2


def test_the_model_as_it_was_stays(run_tiny: Run) -> None:
    was, now = (
        run_tiny(anchor, anchor={"beta": 0.1}, epochs=epochs).models
        for epochs in (1, 3)
    )
    for name, weight in was["anchor"].state_dict().items():
        assert torch.equal(now["anchor"].state_dict()[name], weight)


def test_unused_it_builds_nothing(run_tiny: Run) -> None:
    assert not run_tiny(anchor).models
