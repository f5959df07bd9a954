"""What was due at a step is made up for on resume: exports, evaluation, log line and ``on_checkpoint_end``."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hooktrain_torch import problem_of
from safetensors.torch import load_file

from tests.launching import stored_weights

KILLS = """
import os, signal
from hooktrain import hookimpl

def kill(when):
    if when == "{when}" and not os.path.exists("killed"):
        open("killed", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)

@hookimpl(tryfirst=True)
def on_checkpoint_end(trainer, path):
    kill(f"on_checkpoint_end {{path.name}}")
    with open("emitted", "a") as file:
        print(path, file=file)

@hookimpl(wrapper=True)
def save_checkpoint(trainer):
    saved = yield
    kill(f"saved {{trainer.checkpoint_reason}} {{trainer.global_step}}")
    return saved

@hookimpl
def export_model(folder):
    kill(f"export {{folder.name}}")
"""


def lines_of(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def emitted(folder: Path) -> list[str]:
    return [Path(line).name for line in (folder / "emitted").read_text().splitlines()]


@pytest.mark.parametrize(
    ("when", "first"),
    [
        ("export .step-2.writing", "full"),
        pytest.param("export .export.writing", "full", marks=pytest.mark.thorough),
        ("export .step-2.writing", "huggingface"),
        pytest.param("saved step 2", "full", marks=pytest.mark.thorough),
        ("saved end 4", "full"),
        pytest.param("on_checkpoint_end step-00000002", "full", marks=pytest.mark.thorough),
        ("on_checkpoint_end step-2", "full"),
        pytest.param("on_checkpoint_end export", "full", marks=pytest.mark.thorough),
    ],
)
def test_an_export_that_a_kill_interrupted_is_made(run_cli, chat_recipe, tmp_path, when, first):
    exports = {"type": "huggingface", "save_every_n_steps": 2, "save_end_of_training": True}
    full = {"type": "full", "save_every_n_steps": 2, "save_end_of_training": True, "auto_resume": True}
    recipe = {**chat_recipe, "checkpoint": [full, exports] if first == "full" else [exports, full]}
    killed = run_cli("train", recipe, source=KILLS.format(when=when))
    assert killed.status == -9, killed.output
    run = run_cli("train", recipe, source=KILLS.format(when=when))
    assert run.status == 0, run.output
    folder = tmp_path / "run"
    for name in ("export/step-2", "export/step-4", "export"):
        assert load_file(folder / name / "model.safetensors"), name
    steps = ["step-00000002", "step-00000004"]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == steps
    assert all(problem_of(folder / "checkpoints" / name) is None for name in steps)
    found = Counter(emitted(tmp_path))
    assert found.keys() == {*steps, "step-2", "step-4", "export"}
    assert all(count <= 2 for count in found.values()), "again at most once"
    assert not list(folder.rglob("*.writing"))
    assert [line["step"] for line in run.metrics] == [1, 2, 3, 4]
    assert all("loss" in line for line in run.metrics)
    last = stored_weights(folder / "checkpoints" / "step-00000004")
    made = load_file(folder / "export" / "model.safetensors")
    assert all((made[name] == value).all() for name, value in last.items() if name in made)


def test_nothing_is_made_again_that_was_done(run_cli, chat_recipe, tmp_path):
    """Killed some steps after a save: its export and its event are not repeated."""
    full = {"type": "full", "save_every_n_steps": 2, "auto_resume": True}
    recipe = {**chat_recipe, "checkpoint": [full, {"type": "huggingface", "save_every_n_steps": 2}]}
    source = (
        KILLS.format(when="never") + "\n@hookimpl\ndef on_step_end(trainer):\n    kill(f'step {trainer.global_step}')"
    )
    assert run_cli("train", recipe, source=source.replace("never", "step 3")).status == -9
    assert run_cli("train", recipe, source=source).status == 0
    assert run_cli("train", recipe, source=source).status == 0, "it is over, and there is nothing to do"
    assert emitted(tmp_path) == ["step-00000002", "step-2", "step-00000004", "step-4"]


EPOCHS = """
import os, signal
from hooktrain import hookimpl

@hookimpl
def on_epoch_end(trainer):
    if not os.path.exists("killed"):
        open("killed", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_save_of_an_epoch_whose_last_step_was_saved(run_cli, tiny_recipe, tmp_path):
    by_epoch = {"type": "full", "save_every_n_epochs": 1, "output_dir": str(tmp_path / "epochs")}
    by_step = {"type": "full", "save_every_n_steps": 7, "auto_resume": True}
    recipe = {**tiny_recipe, "epochs": 2, "checkpoint": [by_step, by_epoch]}
    assert run_cli("train", recipe, source=EPOCHS).status == -9
    assert not list((tmp_path / "epochs").glob("step-*"))
    assert run_cli("train", recipe, source=EPOCHS).status == 0
    assert sorted(path.name for path in (tmp_path / "epochs").iterdir()) == ["step-00000007", "step-00000014"]


KILLS_ONE = """
import os, signal

@hookimpl
def on_step_end(trainer):
    if trainer.global_step == 5 and trainer.world.is_main and {kills}:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_log_line_has_the_loss_of_all_its_steps(run_ranks, tmp_path, ranks):
    saves = {"type": "full", "save_every_n_steps": 2, "auto_resume": True}
    settings = {"log_interval": 6, "micro_batch_size": 1, "train_iters": 6, "checkpoint": [saves]}
    whole = run_ranks(ranks, KILLS_ONE.format(kills=False), **settings, run_dir=str(tmp_path / "whole"))
    assert whole.status == 0, whole.output
    assert run_ranks(ranks, KILLS_ONE.format(kills=True), **settings).status != 0
    resumed = run_ranks(ranks, KILLS_ONE.format(kills=False), **settings)
    assert resumed.status == 0, resumed.output
    timed = {"tokens_per_second", "step_seconds"}
    one, two = (
        [{name: value for name, value in line.items() if name not in timed} for line in lines_of(path)]
        for path in (tmp_path / "whole" / "metrics.jsonl", tmp_path / "ranks" / "metrics.jsonl")
    )
    assert one == two and one[-1]["loss"]


SAVES_INSIDE = """
import os, signal
from hooktrain import hookimpl

@hookimpl
def {hook}(trainer):
    if trainer.global_step == 4 and not os.path.exists("killed"):
        trainer.save_with(list(trainer.checkpoint_engines), "request")
        open("killed", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    "hook",
    [
        "on_step_end",
        pytest.param("on_evaluate_start", marks=pytest.mark.thorough),
        "on_evaluate_end",
        pytest.param("on_log", marks=pytest.mark.thorough),
    ],
)
def test_an_evaluation_and_its_line_are_made_up_for(run_cli, tiny_recipe, tmp_path, hook):
    """Killed between a save in the middle of a step and the evaluation or log line of that step."""
    saves = {"type": "full", "save_every_n_steps": 3, "auto_resume": True}
    recipe = {**tiny_recipe, "eval_interval": 2, "log_interval": 2, "checkpoint": saves}
    source = SAVES_INSIDE.format(hook=hook)
    assert run_cli("train", recipe, source=source).status == -9
    run = run_cli("train", recipe, source=source)
    assert run.status == 0, run.output
    assert [line["step"] for line in run.metrics] == [2, 4, 6, 7]
    assert all("loss" in line and "eval/held_out/loss" in line for line in run.metrics)


INTERRUPTS = """
import os, signal
from hooktrain import hookimpl

@hookimpl
def on_evaluate_start(trainer):
    if trainer.global_step == 4 and not os.path.exists("interrupted"):
        open("interrupted", "w").close()
        os.kill(os.getpid(), signal.SIGTERM)
"""


def test_an_evaluation_that_a_signal_interrupted_joins_the_line_of_its_step(run_cli, tiny_recipe):
    saves = {"type": "full", "save_every_n_steps": 3, "auto_resume": True}
    recipe = {**tiny_recipe, "eval_interval": 2, "checkpoint": saves}
    stopped = run_cli("train", recipe, source=INTERRUPTS)
    assert stopped.status == 143, stopped.output
    assert [line["step"] for line in stopped.metrics] == [1, 2, 3, 4]
    run = run_cli("train", recipe, source=INTERRUPTS)
    assert run.status == 0, run.output
    assert [line["step"] for line in run.metrics] == [1, 2, 3, 4, 5, 6, 7], "one line for each step"
    assert "loss" in run.metrics[3] and "eval/held_out/loss" in run.metrics[3]
