"""Trained weights without a gradient are reported once, by group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from hooktrain_sft.unreached_weights import groups

from hooktrain import hookimpl
from tests.plugins.sft.architectures import SMALL, losses, make


class Tower:
    """A model with parts that text does not reach."""

    @hookimpl(wrapper=True)
    def make_model(self) -> Any:
        model = yield
        model.tower = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        model.model.extra = torch.nn.Parameter(torch.zeros(3))
        return model


def test_groups_are_the_outermost_modules_without_a_gradient() -> None:
    missing = ["a.tower.0.w", "a.tower.1.w", "b.w", "a.text.x"]
    assert groups(missing, ["a.text.y", "c"]) == {"a.tower": 2, "b": 1, "a.text.x": 1}


def test_a_run_names_them_once(tmp_path: Path) -> None:
    model = make("Llama", SMALL)
    _, _, observer = losses(model, tmp_path / "whole")
    assert not any("no gradient" in said for said in observer.messages)
    _, _, observer = losses(model, tmp_path / "with", Tower())
    (said,) = [said for said in observer.messages if "no gradient" in said]
    assert "tower (4)" in said and "model.extra (1)" in said
