from __future__ import annotations

from collections.abc import Callable

import pytest
from hooktrain import Trainer
from hooktrain.testing import Recorder, conformance

import focal

Run = Callable[..., Trainer]

test_conformance = conformance(
    focal, recipe="chat", settings={"loss": "whole_focal"}, checks=["loss"]
)


def losses(run_chat: Run, **loss: object) -> list[float]:
    recorder = Recorder()
    run_chat(focal, recorder, loss=loss)
    return [line["loss"] for line in recorder.metrics]


def test_gamma(run_chat: Run) -> None:
    plain = losses(run_chat, type="sft")
    zero = losses(run_chat, type="focal", gamma=0.0)
    assert zero == pytest.approx(plain, rel=1e-4)
    assert losses(run_chat, type="focal", gamma=2.0)[0] < plain[0]


def test_both_forms_are_one_loss(run_chat: Run) -> None:
    short = losses(run_chat, type="focal", gamma=1.5)
    whole = losses(run_chat, type="whole_focal", gamma=1.5)
    assert whole == pytest.approx(short, rel=1e-4)
