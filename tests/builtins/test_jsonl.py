"""``metrics.jsonl``: whole lines, all of them where somebody depends on it, and few writes where steps are quick."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from hooktrain import hookimpl
from hooktrain.builtins import jsonl


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class Reads:
    """Reads the file while the run continues."""

    def __init__(self):
        self.at_step, self.at_checkpoint = {}, {}

    @hookimpl
    def on_step_start(self, trainer):
        self.at_step[trainer.global_step] = self._steps(trainer)

    @hookimpl
    def on_checkpoint_start(self, trainer):
        self.at_checkpoint[trainer.global_step] = self._steps(trainer)

    def _steps(self, trainer):
        return [line["step"] for line in lines_of(trainer.run_dir / "metrics.jsonl")]


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_lines_are_whole_and_there_before_a_checkpoint(run_tiny, tmp_path, monkeypatch, seconds):
    monkeypatch.setattr(jsonl, "_WRITE_EVERY", seconds)
    reads = Reads()
    run_tiny(reads, train_iters=6, checkpoint={"type": "full", "save_every_n_steps": 2, "save_end_of_training": False})
    assert reads.at_checkpoint == {2: [1, 2], 4: [1, 2, 3, 4], 6: [1, 2, 3, 4, 5, 6]}
    at_once = {step: list(range(1, step + 1)) for step in range(6)}
    assert reads.at_step == at_once if seconds == 0.0 else reads.at_step[4] == [1, 2, 3, 4] == reads.at_step[5]
    assert [line["step"] for line in lines_of(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_lines_of_a_run_that_fails_are_kept(run_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "_WRITE_EVERY", 1e9)

    class Raises:
        @hookimpl
        def on_step_start(self, trainer):
            if trainer.global_step == 4:
                raise RuntimeError("enough")

    with pytest.raises(RuntimeError):
        run_tiny(Raises(), train_iters=6)
    assert [line["step"] for line in lines_of(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4]


def test_what_json_has_no_word_for_is_text(run_tiny, tmp_path):
    class Odd:
        @hookimpl
        def collect_metrics(self):
            return {"odd/infinite": float("inf"), "odd/none": float("nan"), "odd/one": 1}

    run_tiny(Odd(), train_iters=1)
    line = lines_of(tmp_path / "run" / "metrics.jsonl")[0]
    assert (line["odd/infinite"], line["odd/none"], line["odd/one"]) == ("inf", "nan", 1)


def test_numbers_of_other_libraries_are_numbers(run_tiny, tmp_path):
    class Evaluates:
        @hookimpl
        def run_evaluate(self):
            return {"eval/a": torch.tensor(0.5), "eval/b": torch.tensor(float("inf")), "eval/c": np.float32(0.25)}

    run_tiny(Evaluates(), train_iters=1, eval_interval=1)
    line = lines_of(tmp_path / "run" / "metrics.jsonl")[0]
    assert (line["eval/a"], line["eval/b"], line["eval/c"]) == (0.5, "inf", 0.25)


def test_a_plugin_that_changes_the_metrics_later_does_not_change_the_line(run_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "_WRITE_EVERY", 1e9)

    class Changes:
        @hookimpl(trylast=True)
        def on_log(self, metrics):
            metrics["loss"] = 0.0

    run_tiny(Changes(), train_iters=3)
    assert all(line["loss"] > 0 for line in lines_of(tmp_path / "run" / "metrics.jsonl"))
