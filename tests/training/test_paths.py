"""Folders of a run are where its recipe says, seen from where it was started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import hooktrain
from hooktrain import CheckpointError, PluginInfo, RecipeError, hookimpl
from tests.facts import facts

ELSEWHERE = """
import os
from hooktrain import PluginInfo, hookimpl

hooktrain_plugin = PluginInfo(may_change=["current directory"])
{at_import}

@hookimpl
def on_train_start(trainer):
    os.makedirs("elsewhere", exist_ok=True)
    os.chdir("elsewhere")
"""


@pytest.mark.parametrize(
    "at_import", ["", "os.makedirs('first', exist_ok=True); os.chdir('first')"], ids=["", "import"]
)
def test_a_plugin_that_changes_the_working_directory_moves_nothing(run_cli, chat_recipe, tmp_path, at_import):
    saves = [
        {"type": "full", "save_every_n_steps": 1},
        {"type": "full", "save_every_n_steps": 1, "output_dir": "more"},
        {"type": "huggingface", "save_every_n_steps": 1, "save_end_of_training": True, "output_dir": "model"},
        {"type": "huggingface", "save_end_of_training": True},
    ]
    recipe = {**chat_recipe, "run_dir": "run", "checkpoint": saves, "train_iters": 2, "profile_hooks": True}
    recipe["samples"] = {"prompts": ["Hello"], "max_new_tokens": 1}
    run = run_cli("train", recipe, source=ELSEWHERE.format(at_import=at_import))
    assert run.status == 0, run.output
    for name in ("checkpoints/step-00000002", "export/config.json", "metrics.jsonl", "profile.json", "samples.jsonl"):
        assert (tmp_path / "run" / name).exists(), name
    for path in ("more/step-00000002", "model/step-1", "model/config.json", "run/run.json"):
        assert (tmp_path / path).exists(), path
    wrong = [path for folder in ("elsewhere", "first") for path in (tmp_path / folder).rglob("*") if path.is_file()]
    assert not wrong


def test_a_relative_checkpoint_to_resume_from(run_tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Moves:
        @hookimpl
        def make_model(self):
            os.chdir("/")

    run = run_tiny(Moves(), run_dir="run", checkpoint={"type": "full", "save_every_n_steps": 2})
    assert run.run_dir == tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    path = Path("run/checkpoints/step-00000004")
    saves = {"type": "full", "save_every_n_steps": 7}
    assert run_tiny(Moves(), run_dir="again", checkpoint=saves, trainer={"resume_from": path}).global_step == 7
    assert (tmp_path / "again" / "metrics.jsonl").exists()


@pytest.mark.parametrize("url", ["s3://bucket/run", "gs://x", "file:///tmp/x", "hf://datasets/x", "s3:/bucket"])
def test_a_url_where_a_folder_is_expected_is_refused(run_tiny, tiny_recipe, tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=facts("run_dir", url, "URL")):
        run_tiny(run_dir=url)
    with pytest.raises(RecipeError, match=facts("output_dir", url, "URL")):
        run_tiny(checkpoint={"type": "full", "output_dir": url})
    trainer = run_tiny()
    with pytest.raises(CheckpointError, match=facts("save", url, "URL")):
        trainer.save(url, type="full")
    with pytest.raises(CheckpointError, match=facts("save", "URL")):
        trainer.save(Path(url), type="full")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_what_is_no_url_stays_a_folder(run_tiny, tmp_path):
    assert hooktrain.local_path("C:/runs") == Path("C:/runs")
    assert run_tiny(run_dir=str(tmp_path / "a:b")).run_dir == tmp_path / "a:b"
    assert hooktrain.local_path("~/x") == Path.home() / "x"


def test_a_stream_is_read_where_the_run_was_started(run_chat, chat_recipe, tmp_path, monkeypatch):
    class Moves:
        hooktrain_plugin = PluginInfo(may_change=["current directory"])

        @hookimpl
        def on_train_start(self):
            (tmp_path / "elsewhere").mkdir()
            os.chdir(tmp_path / "elsewhere")

    monkeypatch.chdir(tmp_path)
    name = Path(chat_recipe["data"]["sources"][0]).name
    assert (tmp_path / name).is_file()
    source = {"name_or_path": name, "streaming": True}
    run = run_chat(Moves(), data={"sources": [source], "max_length": 96}, train_iters=20)
    assert run.global_step == 20, "several epochs"
