from __future__ import annotations

from collections.abc import Callable, Generator

import pytest
from hooktrain import Trainer, hookimpl
from hooktrain.testing import Recorder, conformance
from torch import Tensor
from torch.nn import Module

import anomaly

Run = Callable[..., Trainer]


class Root:
    """A square root of 0: finite, with an infinite gradient times 0."""

    @hookimpl(wrapper=True)
    def make_model(self) -> Generator[None, Module, Module]:
        model = yield

        def add_nothing(_: Module, __: object, out: Tensor) -> Tensor:
            return out + (0 * out).sqrt()

        model.get_submodule("head").register_forward_hook(add_nothing)
        return model


def test_the_operation_is_named(run_tiny: Run) -> None:
    with pytest.raises(RuntimeError, match="SqrtBackward0"):
        run_tiny(anomaly, Root(), anomaly={"enabled": True})


def test_nothing_else_changes(run_tiny: Run) -> None:
    plain, looked = Recorder(), Recorder()
    run_tiny(anomaly, plain)
    run_tiny(anomaly, looked, anomaly={"enabled": True})
    losses = [line["loss"] for line in plain.metrics]
    assert [line["loss"] for line in looked.metrics] == losses


test_conformance = conformance(
    anomaly,
    settings={"anomaly": {"enabled": True}},
    checks=["hooks", "ranks"],
)
