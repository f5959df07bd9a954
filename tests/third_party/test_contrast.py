"""A package of another author with objectives of its own: a term with its own denominator, and a preference loss."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest

from hooktrain.testing import Recorder, train
from tests.environments import PYTEST, Environment, unpack
from tests.plugins.preference.conftest import messages
from tests.third_party.conftest import PACKAGES


@pytest.fixture
def contrast(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(PACKAGES / "hooktrain-contrast"))
    yield importlib.import_module("hooktrain_contrast")


def test_its_gradients_are_divided_by_documents(run_chat: Any, contrast: Any) -> None:
    losses = {}
    for coefficient in (0.0, 0.5):
        recorder = Recorder()
        run_chat(
            contrast,
            recorder,
            gradient_accumulation_steps=2,
            train_iters=1,
            optimizer={"lr": 0.0},
            contrast={"coefficient": coefficient},
        )
        losses[coefficient] = recorder.metrics[-1]
    assert "contrast" not in losses[0.0]
    term = losses[0.5]["contrast"]
    assert losses[0.5]["loss"] == pytest.approx(losses[0.0]["loss"] + 0.5 * term, rel=1e-5)
    assert any(name.startswith("eval/") and name.endswith("/contrast") for name in losses[0.5])


def test_its_preference_loss(tmp_path: Any, tiny_llama: Any, contrast: Any) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in messages()))
    recipe = {
        "type": "preference",
        "run_dir": str(tmp_path / "run"),
        "micro_batch_size": 8,  # all pairs in each step, so that steps can be compared
        "train_iters": 6,
        "model": {"name_or_path": str(tiny_llama)},
        "data": {"sources": [str(path)], "max_length": 96},
        "loss": {"type": "exponential", "beta": 0.1},
        "optimizer": {"lr": 3e-3},
        "scheduler": {"type": "constant"},
        "strategy": {"dtype": "fp32", "device": "cpu"},
        "console": {"enabled": False},
    }
    recorder = Recorder()
    trainer = train(recipe, contrast, recorder)
    assert recorder.metrics[-1]["rewards/margins"] > recorder.metrics[0]["rewards/margins"]
    assert not trainer.models and math.isfinite(recorder.metrics[-1]["loss"])
    both = Recorder()
    train({**recipe, "run_dir": str(tmp_path / "two"), "contrast": {"coefficient": 0.1}}, contrast, both)
    assert both.metrics[0]["loss"] == pytest.approx(
        recorder.metrics[0]["loss"] + 0.1 * both.metrics[0]["contrast"], rel=1e-5
    )


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_its_own_tests(built: Any, tmp_path: Any) -> None:
    """The conformance kit among them, with the package installed."""
    site = unpack((built / "wheels").glob("hooktrain_contrast-*.whl"), tmp_path / "site")
    run = Environment.of(site).run(built / "sources" / "hooktrain-contrast", *PYTEST, "tests")
    assert run.status == 0, run.output
