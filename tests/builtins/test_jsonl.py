"""``metrics.jsonl``: whole lines, all of them where somebody depends on it, and few writes where steps are quick."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from hooktrain import hookimpl
from hooktrain.builtins import jsonl
from tests.facts import facts


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


ODD = [
    b"{not json\n",
    b"[1, 2]\n",
    b'{"loss": 1}\n',
    b'{"step": "two"}\n',
    b'{"step": NaN}\n',
    b'{"step": true}\n',
    b"\xff\xfe\n",
    b"[" * 100_000 + b"\n",
    b"\n",
]


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_an_odd_line_is_kept_aside_and_blocks_nothing(run_tiny, tmp_path, odd):
    saves = {"checkpoint": {"type": "full", "save_every_n_steps": 2, "auto_resume": True}}
    run_tiny(**saves, exit_iteration=4)
    path = tmp_path / "run" / "metrics.jsonl"
    whole = path.read_bytes()
    first, _, rest = whole.partition(b"\n")
    path.write_bytes(first + b"\n" + odd + rest)
    with pytest.warns(UserWarning, match=facts(str(path), "line 2", "metrics.1.jsonl")):
        run_tiny(**saves)
    assert [line["step"] for line in lines_of(path)] == [1, 2, 3, 4, 5, 6, 7]
    assert (tmp_path / "run" / "metrics.1.jsonl").read_bytes() == first + b"\n" + odd + rest


def test_a_folder_in_the_place_of_the_file_is_moved_aside(run_tiny, tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    path.mkdir(parents=True)
    (path / "notes").write_text("mine")
    with pytest.warns(UserWarning, match=facts(str(path), "metrics.1.jsonl")):
        run_tiny()
    assert len(lines_of(path)) == 7
    assert (tmp_path / "run" / "metrics.1.jsonl" / "notes").read_text() == "mine"


def test_two_lines_for_one_step_are_one(run_tiny, tmp_path, monkeypatch):
    class AtEpochEnd:
        @hookimpl
        def on_epoch_end(self, trainer):
            trainer.request_evaluation()

    for number, seconds in enumerate((0.0, 1e9)):
        monkeypatch.setattr(jsonl, "_WRITE_EVERY", seconds)
        trainer = run_tiny(AtEpochEnd(), epochs=2, exit_iteration=10, run_dir=str(tmp_path / f"{number}"))
        assert [line["step"] for line in trainer.history].count(7) == 2
        lines = lines_of(tmp_path / f"{number}" / "metrics.jsonl")
        assert [line["step"] for line in lines] == list(range(1, 11))
        assert "loss" in lines[6] and "eval/held_out/loss" in lines[6]
