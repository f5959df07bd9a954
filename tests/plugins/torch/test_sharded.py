"""Sharded weights: answers to prompts, and adapters whose frozen base is not written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hooktrain.testing import Recorder
from tests.launching import stored_weights
from tests.preload import DEEPSPEED

pytestmark = pytest.mark.preload(*DEEPSPEED)

SHARDED = {
    "fsdp2": {"dtype": "fp32", "device": "cpu", "data_parallel": "fsdp2"},
    "zero 3": {"type": "deepspeed", "zero_stage": 3, "dtype": "fp32", "device": "cpu"},
}


@pytest.mark.parametrize(
    "strategy",
    [SHARDED["fsdp2"], pytest.param(SHARDED["zero 3"], marks=pytest.mark.thorough)],
    ids=list(SHARDED),
)
def test_an_adapter_on_a_sharded_base(run: Any, run_ranks: Any, recipe: Any, tmp_path: Path, strategy: Any) -> None:
    """Its answers and losses are those of one rank; it is saved without the base, and resumed."""
    recorder = Recorder()
    settings: dict[str, Any] = {
        **recipe,
        "micro_batch_size": 2,
        "peft": {"type": "lora", "r": 4},
        "checkpoint": [{"type": "full", "save_every_n_steps": 2, "save_end_of_training": True}],
        "samples": {"prompts": ["What is the answer?", "Is it forty-two?"], "max_new_tokens": 12},
    }
    run(recorder, **settings)
    two = {**settings, "strategy": strategy, "micro_batch_size": 1, "run_dir": str(tmp_path / "ranks")}
    undisturbed = run_ranks(2, **two)
    assert undisturbed.status == 0, undisturbed.output
    losses = [line["loss"] for line in recorder.metrics]
    assert [line["loss"] for line in undisturbed.metrics] == pytest.approx(losses, rel=1e-4)
    answers = [(folder / "samples.jsonl").read_text().splitlines() for folder in (tmp_path / "run", undisturbed.folder)]
    assert len(answers[0]) == 4
    assert [json.loads(line) for line in answers[1]] == [json.loads(line) for line in answers[0]]
    path = undisturbed.folder / "checkpoints" / "step-00000002"
    alone = tmp_path / "run" / "checkpoints" / "step-00000002"
    assert all("lora_" in name for name in stored_weights(path))
    frozen = [json.loads((folder / "frozen.json").read_text()) for folder in (path, alone)]
    assert frozen[0] == frozen[1], "each rank's share adds up to what one rank finds"
    rest = run_ranks(2, words=["--resume", str(path)], **{**two, "run_dir": str(tmp_path / "rest")})
    assert rest.status == 0, rest.output
    found = [json.loads(line)["loss"] for line in (tmp_path / "rest" / "metrics.jsonl").read_text().splitlines()]
    assert found == [line["loss"] for line in undisturbed.metrics][2:]
    other = Recorder()
    run(other, trainer={"resume_from": path}, **{**settings, "run_dir": str(tmp_path / "other")})
    assert [line["loss"] for line in other.metrics] == pytest.approx(losses[2:], rel=1e-4)
