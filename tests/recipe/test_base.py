"""``base``: a recipe on top of another one."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from hooktrain import RecipeError
from hooktrain.inspection.plan import read_plan
from hooktrain.recipe.yaml_reader import read_recipe
from tests.facts import facts

BASE = """
type: tiny
epochs: 3
optimizer: {type: adamw, lr: 1.0e-3, betas: [0.8, 0.9]}
scheduler: {type: wsd, decay_ratio: 0.5}
checkpoint: [{type: full, save_end_of_training: true}, {type: full}]
plugins: {load: ["hooktrain.testing.tiny_plugin:TinyPlugin"]}
"""
TOP = """
base: ../base.yaml
epochs: 1
optimizer:
  lr: 2.0e-3
scheduler: {type: linear}
checkpoint: [{type: full, save_every_n_steps: 2}]
"""


@pytest.fixture
def top(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "top.yaml").write_text(TOP)
    return tmp_path / "mine" / "top.yaml"


def test_sections_are_merged_and_lists_and_other_types_replaced(top):
    assert read_recipe(top) == {
        "type": "tiny",
        "epochs": 1,
        "optimizer": {"type": "adamw", "lr": 2e-3, "betas": [0.8, 0.9]},
        "scheduler": {"type": "linear"},
        "checkpoint": [{"type": "full", "save_every_n_steps": 2}],
        "plugins": {"load": ["hooktrain.testing.tiny_plugin:TinyPlugin"]},
    }


def test_a_plan_says_which_file_a_value_is_from(top):
    facts_ = read_plan(top, ["optimizer.eps=1e-6"], estimates=False)
    assert facts_["complaints"] == []
    origins = facts_["origins"]
    found = [origins[key] for key in ("type", "epochs", "optimizer.lr", "optimizer.betas", "scheduler.type")]
    assert found == ["base.yaml:2", "top.yaml:3", "top.yaml:5", "base.yaml:4", "top.yaml:6"]
    assert origins["optimizer.eps"] == "command line -o optimizer.eps=1e-6"
    assert "base" not in facts_["recipe"]


def test_a_base_of_a_base(top):
    (top.parent / "third.yaml").write_text("base: top.yaml\nepochs: 7\n")
    found = read_recipe(top.parent / "third.yaml")
    assert (found["epochs"], found["optimizer"]["lr"], found["type"]) == (7, 2e-3, "tiny")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: nowhere.yaml", ["base", "'nowhere.yaml'", "expected a file"]),
        ("base: mine.yaml", ["base", "'mine.yaml'", "another recipe"]),
        ("base: 3", ["base", "given 3", "path"]),
    ],
)
def test_what_is_no_base(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        read_recipe(tmp_path / "mine.yaml")
    assert re.search(facts(*message), str(caught.value))


def test_a_strangers_recipe_has_its_base_beside_it(top, monkeypatch):
    monkeypatch.setitem(os.environ, "HOOKTRAIN_UNTRUSTED", "1")
    with pytest.raises(RecipeError, match=facts("base", "../base.yaml", "in the folder of the recipe")):
        read_recipe(top)


def test_a_base_is_for_files(run_tiny):
    with pytest.raises(RecipeError, match=facts("base", "'x.yaml'", "from Python", "file")):
        run_tiny(base="x.yaml")


# ------------------------------------------------------------------------------------------------ global_batch_size


def test_a_global_batch_gives_the_accumulation_and_the_same_losses(run_tiny, tmp_path):
    by_hand = run_tiny(micro_batch_size=2, gradient_accumulation_steps=3)
    trainer = run_tiny(micro_batch_size=2, global_batch_size=6, run_dir=str(tmp_path / "other"))
    assert trainer.recipe.gradient_accumulation_steps == 3
    assert [line["loss"] for line in trainer.history] == [line["loss"] for line in by_hand.history]
    kept = read_recipe(tmp_path / "other" / "recipe.yaml")
    assert kept["global_batch_size"] == 6 and "gradient_accumulation_steps" not in kept


@pytest.mark.parametrize(("nproc", "steps"), [(1, 4), (2, 2), (4, 1)])
def test_a_plan_divides_by_the_ranks(top, nproc, steps):
    found = read_plan(top, ["micro_batch_size=2", "global_batch_size=8"], nproc=nproc)
    assert found["complaints"] == []
    assert found["estimates"]["steps"]["rows_per_step"] == 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["micro_batch_size=3", "global_batch_size=8"], "micro_batch_size 3 on 1 rank); write 6 or 9"),
        (["micro_batch_size=3", "global_batch_size=2"], "on 1 rank); write 3, or"),
        (["gradient_accumulation_steps=2", "global_batch_size=2"], "given together with global_batch_size"),
    ],
)
def test_sizes_that_do_not_fit(top, words, message):
    assert [each for each in read_plan(top, words, estimates=False)["complaints"] if message in each["message"]]


@pytest.mark.parametrize(
    ("base", "message"),
    [("~nobody-here/x.yaml", "user is not known"), ("x" * 300, "255"), ("loop.yaml", "no"), ("s3://b/x.yaml", "a URL")],
)
def test_a_base_that_no_path_can_be(tmp_path, base, message):
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "top.yaml").write_text(f"base: {base}\n")
    with pytest.raises(RecipeError, match=facts("base", message)):
        read_recipe(tmp_path / "top.yaml")


def test_a_recipe_from_a_pipe_is_read_once(tmp_path):
    reader, writer = os.pipe()
    os.write(writer, b"type: tiny")
    os.close(writer)
    assert read_recipe(Path(f"/dev/fd/{reader}")) == {"type": "tiny"}
    os.close(reader)
