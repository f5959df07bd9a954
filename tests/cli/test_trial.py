"""``hooktrain train --overfit`` and ``--fast-dev-run``."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from hooktrain import CheckpointError, DataError, HooktrainError
from hooktrain.cli.main import cli
from hooktrain.cli.trial import _scratch
from hooktrain.types import World
from tests.facts import facts

BROKEN = """
from hooktrain import hookimpl

@hookimpl
def collect_state():
    return {"number": 1}

@hookimpl
def restore_state(state):
    raise ValueError("the number is no word")
"""


MEETS = """
from pathlib import Path
from hooktrain import hookimpl

@hookimpl
def on_train_start(trainer):
    with Path("seen").open("a") as stream:
        stream.write(f"{trainer.run_dir.parent}\\n")
"""


STOPS = """
from hooktrain import hookimpl

@hookimpl
def on_step_end(trainer):
    if trainer.global_step == 1:
        trainer.request_stop("enough", exit_status=143)
"""


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_recipe: dict[str, Any]) -> Any:
    """``train(words..., key=value)``: run the command in this process, on the tiny recipe with keys changed."""
    monkeypatch.chdir(tmp_path)
    plugins = {"load": ["hooktrain.testing.tiny_plugin:TinyPlugin"]}

    def run(*words: str, **more: Any) -> Result:
        raw = {**tiny_recipe, "run_dir": str(tmp_path / "run"), "plugins": plugins, **more}
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(raw))
        return CliRunner().invoke(cli, ["train", "tiny.yaml", *words], catch_exceptions=True)

    return run


def test_a_fast_dev_run_does_everything_and_keeps_nothing(train, tmp_path):
    checkpoint = [{"type": "full", "save_every_n_epochs": 1, "keep_last": 2, "auto_resume": True}]
    result = train("--fast-dev-run", "3", checkpoint=checkpoint, epochs=5, eval_interval="epoch", max_time="5h")
    assert result.exit_code == 0, result.output
    said = facts("trains 3 steps", "resumes from step-00000003", "trained 6 steps", "evaluated held_out", "exported")
    assert re.search(said, result.output)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_two_trials_of_a_recipe_have_folders_of_their_own(train, tmp_path, monkeypatch):
    (tmp_path / "meets.py").write_text(MEETS)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "run.fast-dev-run-other").mkdir()
    result = train("--fast-dev-run", plugins={"load": ["hooktrain.testing.tiny_plugin:TinyPlugin", "meets"]})
    assert result.exit_code == 0, result.output
    first, second = (tmp_path / "seen").read_text().split()
    assert first == second and first != str(tmp_path / "run.fast-dev-run-other")
    assert [path.name for path in tmp_path.glob("run*")] == ["run.fast-dev-run-other"], "what another trial writes to"


def test_the_ranks_of_a_trial_share_a_folder(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    ranks = [_scratch({"run_dir": "run"}, "tiny", World(rank=rank, world_size=2)) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "two")
    assert _scratch({"run_dir": "run"}, "tiny", World(world_size=2)) != ranks[0]


@pytest.mark.parametrize(("console", "said"), [(True, False), (False, False)])
def test_no_command_is_named_for_a_folder_that_is_removed(train, console, said):
    result = train("--fast-dev-run", console={"enabled": console})
    assert result.exit_code == 0, result.output
    assert ("hooktrain report" in result.output) == said


def test_a_recipe_that_saves_nothing_is_resumed_too(train, tmp_path):
    result = train("--fast-dev-run", data={"eval_rows": 0})
    assert result.exit_code == 0, result.output
    assert re.search(facts("trained 4 steps", "no evaluation set"), result.output)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


@pytest.mark.parametrize(
    ("more", "kind", "message"),
    [
        ({"plugins": {"load": ["hooktrain.testing.tiny_plugin:TinyPlugin", "broken"]}}, ValueError, ["no word"]),
        ({"checkpoint": [{"type": "huggingface"}]}, CheckpointError, ["TinyModel", "transformers model"]),
        ({"data": {"type": "empty_evaluation"}}, DataError, ["'held_out' is empty"]),
    ],
    ids=["restore_state", "export", "evaluation"],
)
def test_what_would_fail_after_hours_fails_at_once(train, tmp_path, monkeypatch, more, kind, message):
    (tmp_path / "broken.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    if "data" in more:
        from hooktrain.testing import tiny_plugin

        real = tiny_plugin.TinyRows
        monkeypatch.setattr(tiny_plugin, "TinyRows", lambda rows, *rest: real(0 if rows == 5 else rows, *rest))
        more = {}
    result = train("--fast-dev-run", **more)
    cause = result.exception.__cause__ if result.exception.__cause__ is not None else result.exception
    assert isinstance(cause, kind), result.output
    assert re.search(facts(*message), str(cause))
    assert not list(tmp_path.glob("run*")), "also removed after a failure"


def test_a_fast_dev_run_that_is_stopped_says_so_and_resumes_nothing(train, tmp_path, monkeypatch):
    (tmp_path / "stops.py").write_text(STOPS)
    monkeypatch.syspath_prepend(tmp_path)
    result = train("--fast-dev-run", plugins={"load": ["hooktrain.testing.tiny_plugin:TinyPlugin", "stops"]})
    assert result.exit_code == 143
    assert re.search(facts("fast-dev-run: ended at step 1", "expected 2", "enough"), result.output)
    assert "resumes" not in result.output and not list(tmp_path.glob("run*"))


def test_a_run_dir_that_is_no_text_is_an_error_of_the_recipe(train):
    for words in (["--overfit", "1"], ["--fast-dev-run"]):
        assert "run_dir" in str(train(*words, run_dir=["a"]).exception)


def test_overfit_takes_a_number_of_steps_with_a_unit(train, tmp_path):
    result = train("--overfit", "1", train_iters="0.004k")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in (tmp_path / "run-overfit" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval/held_out/loss" in line] == [lines[-1]["step"]] == [4]


@pytest.mark.parametrize(("lr", "message"), [(0.3, "near zero: the model learns them"), (0.0, "is not near zero")])
def test_overfit_says_whether_the_loss_goes_to_zero(train, tmp_path, lr, message):
    result = train("--overfit", "1", optimizer={"lr": lr}, train_iters=40, micro_batch_size=1, checkpoint="full")
    assert result.exit_code == 0, result.output
    assert re.search(facts("overfit: the loss of 1 sequences", "in 40 steps", message), result.output)
    lines = [json.loads(line) for line in (tmp_path / "run-overfit" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval/held_out/loss" in line] == [40]
    assert len({line["tokens"] - before["tokens"] for before, line in itertools.pairwise(lines)}) == 1
    assert not (tmp_path / "run").exists() and not (tmp_path / "run-overfit" / "checkpoints").exists()


def test_words_that_exclude_each_other(train):
    assert "goes with neither" in train("--fast-dev-run", "2", "--overfit", "1").output


# ------------------------------------------------------------------------------------------------- limits in a recipe


@pytest.mark.parametrize(
    ("limit", "steps", "rows"), [(2, 2, 4), (0.5, 3, 6), ("10%", 1, 1), (1.0, 7, 13), (100, 7, 13)]
)
def test_limits_of_the_training_data(run_tiny, limit, steps, rows):
    trainer = run_tiny(epochs=2, limit_train_batches=limit)
    assert (trainer.global_step, len(trainer.loader), len(trainer.data.train)) == (2 * steps, steps, rows)
    read = trainer.data.train.rows
    assert trainer.data.train.row_name(0) == f"row {read[0]}"
    assert sorted(set(trainer.data.train.dataset.read)) == sorted(read), "nothing else was read"


@pytest.mark.parametrize(("limit", "rows"), [(1, [0, 1]), (0.6, [0, 1, 2])])
def test_limits_of_the_evaluation(run_tiny, limit, rows):
    trainer = run_tiny(train_iters=1, limit_eval_batches=limit)
    assert trainer.data.evaluation["held_out"].dataset.read == rows


def test_a_limited_run_resumes_and_another_limit_is_another_training(run_tiny, tmp_path):
    checkpoint = {"type": "full", "save_every_n_steps": 3}
    one = run_tiny(epochs=3, limit_train_batches=2, checkpoint=checkpoint)
    path = tmp_path / "run" / "checkpoints" / "step-00000003"
    settings = {"epochs": 3, "checkpoint": checkpoint, "run_dir": str(tmp_path / "rest")}
    two = run_tiny(limit_train_batches=2, trainer={"resume_from": path}, **settings)
    assert [line["loss"] for line in two.history] == [line["loss"] for line in one.history][3:]
    with pytest.raises(HooktrainError, match=facts("limit_train_batches", "was 2", "3")):
        run_tiny(limit_train_batches=3, trainer={"resume_from": path}, **settings)


@pytest.mark.parametrize("limit", [0, -1, 1.5, "x"])
def test_limits_that_mean_nothing(run_tiny, limit):
    with pytest.raises(HooktrainError, match=facts("limit_train_batches", str(limit))):
        run_tiny(limit_train_batches=limit)
