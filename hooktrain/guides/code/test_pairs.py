from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hooktrain import Trainer
from hooktrain.testing import Recorder, train

import pairs


@pytest.fixture
def recipe(tmp_path: Path, tiny_llama: Path) -> dict[str, Any]:
    names = ("prompt", "chosen", "rejected")
    rows = [
        ("What is it?", "The answer.", "No."),
        ("Is it?", "It is forty-two.", "What?"),
        ("No?", "Forty-two it is.", "It is."),
    ]
    lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(lines))
    return {
        "type": "pairs",
        "run_dir": str(tmp_path / "run"),
        "model": {"name_or_path": str(tiny_llama), "dtype": "fp32"},
        "data": {"path": str(path)},
        "loss": {"beta": 1.0},
        "optimizer": {"lr": 0.01},
        "epochs": 8,
    }


def run(recipe: dict[str, Any]) -> tuple[Trainer, Recorder]:
    recorder = Recorder()
    return train(recipe, pairs, recorder), recorder


def test_it_learns_which_answer_is_better(recipe: dict[str, Any]) -> None:
    trainer, recorder = run({**recipe, "micro_batch_size": 3})
    assert recorder.metrics[-1]["loss"] < recorder.metrics[0]["loss"]
    assert 0 <= recorder.metrics[-1]["accuracy"] <= 1
    assert recorder.metrics[-1]["pairs"] == 3 * 8
    assert trainer.state.counted == {"pairs": 24.0}


def test_packed_pairs_do_not_see_each_other(recipe: dict[str, Any]) -> None:
    sizes = {"micro_batch_size": 1, "gradient_accumulation_steps": 3}
    losses = [
        [line["loss"] for line in run({**recipe, **split})[1].metrics]
        for split in ({"micro_batch_size": 3}, sizes)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
