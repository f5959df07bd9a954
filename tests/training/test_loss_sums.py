"""Further sums of a loss are logged as means over the same tokens, however these are split up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from hooktrain import HooktrainError, LoopHookError, LossSum, StepOutput, hookimpl
from hooktrain.testing import Recorder
from tests.counting_loss import Counts, counted
from tests.facts import facts


def evens(rows: list[tuple[Tensor, Tensor]]) -> float:
    labels = torch.cat([labels[1:] for _, labels in rows])
    labels = labels[labels != -100]
    return float((labels % 2 == 0).sum() / len(labels))


@pytest.mark.parametrize("split", [(13, 1), (2, 7), (3, 2)])
def test_means_are_over_tokens(run_tiny: Any, split: tuple[int, int]) -> None:
    size, accumulation = split
    recorder = Recorder()
    trainer = run_tiny(
        Counts(), recorder, micro_batch_size=size, gradient_accumulation_steps=accumulation, log_interval=1000
    )
    (line,) = recorder.metrics
    assert line["even"] == pytest.approx(evens(trainer.data.train.rows), rel=1e-6)
    assert line["eval/held_out/even"] == pytest.approx(evens(trainer.data.evaluation["held_out"].rows), rel=1e-6)
    assert 0 < line["accuracy"] < 1
    with torch.no_grad():
        batch = trainer.data.collate(trainer.data.evaluation["held_out"].rows)
        found = counted(trainer.model, batch, 1).sums["accuracy"] / (batch["labels"][:, 1:] != -100).sum()
    assert line["eval/held_out/accuracy"] == pytest.approx(float(found))


def test_each_line_begins_anew_and_events_get_the_sums(run_tiny: Any) -> None:
    class Looks:
        def __init__(self) -> None:
            self.even: list[float] = []

        @hookimpl
        def on_microbatch_end(self, loss: LossSum) -> None:
            assert not any(value.requires_grad for value in loss.sums.values())
            self.even.append(float(loss.sums["even"]) / loss.denominator)

    looks, recorder = Looks(), Recorder()
    run_tiny(Counts(), looks, recorder)
    assert [line["even"] for line in recorder.metrics] == pytest.approx(looks.even)
    assert len(set(looks.even)) > 1


def test_a_step_left_out_is_not_counted(run_tiny: Any) -> None:
    class Skips:
        @hookimpl(wrapper=True)
        def run_step(self, trainer: Any) -> Any:
            output: StepOutput = yield
            return output._replace(stepped=trainer.global_step % 2 == 0)

    plain, skipping = Recorder(), Recorder()
    run_tiny(Counts(), plain, optimizer={"lr": 0.0})
    run_tiny(Counts(), Skips(), skipping, optimizer={"lr": 0.0}, log_interval=2)
    assert skipping.metrics[0]["even"] == pytest.approx(plain.metrics[0]["even"]), "of the first step alone"


def test_thousands_of_steps_between_two_lines(run_tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hooktrain.training.metrics._MOST", 3)
    recorder = Recorder()
    trainer = run_tiny(Counts(), recorder, micro_batch_size=1, log_interval=1000)
    assert recorder.metrics[0]["even"] == pytest.approx(evens(trainer.data.train.rows))
    trainer.meter.reset()
    assert not trainer.meter.sums


def test_a_wrapper_that_drops_sums_is_told(run_tiny: Any) -> None:
    class Drops:
        @hookimpl(wrapper=True)
        def compute_loss(self, trainer: Any) -> Any:
            loss: LossSum = yield
            return LossSum(loss.total, loss.denominator) if trainer.global_step else loss

    with pytest.raises(LoopHookError, match=facts("compute_loss: ", "none", "accuracy, even")):
        run_tiny(Counts(), Drops())


def test_a_name_that_is_taken(run_tiny: Any) -> None:
    class Log:
        @hookimpl
        def collect_metrics(self) -> dict[str, float]:
            return {"even": 0.5}

    with pytest.raises(HooktrainError, match=facts("hook collect_metrics: ", "'even'", "'Log'", "my_plugin/even")):
        run_tiny(Counts(), Log())


MODULE = """
from tests.counting_loss import Counts
counts = Counts()
make_loss = counts.make_loss
"""


def test_ranks_add_up(tmp_path: Path) -> None:
    (tmp_path / "extra.py").write_text(MODULE)
    lines = {}
    for ranks in (1, 2):
        recipe = {
            "type": "tiny",
            "run_dir": str(tmp_path / f"ranks{ranks}"),
            "micro_batch_size": 4 // ranks,
            "optimizer": {"type": "sgd", "lr": 0.1},
            "strategy": {"dtype": "fp32", "device": "cpu"},
            "console": {"enabled": False},
            "plugins": {"load": ["hooktrain.testing:TinyPlugin", "extra"]},
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        subprocess.run(
            [sys.executable, "-m", "hooktrain", "train", str(tmp_path / "recipe.yaml"), "--nproc", str(ranks)],
            check=True,
            capture_output=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        )
        text = (tmp_path / f"ranks{ranks}" / "metrics.jsonl").read_text()
        lines[ranks] = [json.loads(line) for line in text.splitlines()]
    for one, two in zip(lines[1], lines[2], strict=True):
        for name in ("loss", "even", "accuracy"):
            assert one[name] == pytest.approx(two[name], rel=1e-5)
    last = {name: value for name, value in lines[1][-1].items() if name.startswith("eval/")}
    assert last.keys() == {"eval/held_out/loss", "eval/held_out/even", "eval/held_out/accuracy"}
    assert {name: lines[2][-1][name] for name in last} == pytest.approx(last, rel=1e-5)
