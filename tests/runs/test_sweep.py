"""``hooktrain sweep``: a run for each combination, which goes on where it was interrupted, and one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from hooktrain.runs.sweep import SweepRun, checkpoint_words, combinations, split_values, summary

LOAD = {"load": ["hooktrain.testing.tiny_plugin:TinyPlugin"]}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1e-5,2e-5", ["1e-5", "2e-5"]),
        ("adamw", ["adamw"]),
        ("[a, b],[c]", ["[a, b]", "[c]"]),
        ("{type: adamw, lr: 1},sgd", ["{type: adamw, lr: 1}", "sgd"]),
        ("'a,b',c", ["'a,b'", "c"]),
    ],
)
def test_values_are_separated_by_commas(text, values):
    assert split_values(text) == values


def test_each_combination_has_a_folder_of_its_own(tmp_path):
    words = ["optimizer.lr=1e-5,2e-5", "model.dropout=0,0.1", "epochs=2", "data.sources=[a,b]"]
    shared, runs = combinations(tmp_path, words, [7, 8])
    assert shared == ["epochs=2", "data.sources=[a,b]"]
    assert len(runs) == 8 and len({run.folder for run in runs}) == 8
    assert runs[0].folder.name == "lr=1e-5_dropout=0_seed=7"
    assert str(runs[-1]) == "optimizer.lr=2e-5 model.dropout=0.1 seed=8"
    _, alike = combinations(tmp_path, ["a.lr=1,2", "b.lr=1,2", "c=x/y,x?y"])
    assert len({run.folder for run in alike}) == 8 and alike[0].folder.name.startswith("a.lr=1_b.lr=1_c=x-y")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, []),
        ("full", ["checkpoint={type: full, auto_resume: true}"]),
        ({"type": "full"}, ["checkpoint.auto_resume=true"]),
        (
            [{"type": "full"}, {"type": "huggingface", "output_dir": "out/mine"}],
            [
                "checkpoint.0.auto_resume=true",
                "checkpoint.1.auto_resume=true",
                "checkpoint.1.output_dir=runs/a/output-1/mine",
            ],
        ),
    ],
)
def test_every_run_saves_into_its_own_folder(given, words):
    assert checkpoint_words({"checkpoint": given}, Path("runs/a")) == words


def test_the_summary_takes_seeds_together(run_tiny, tmp_path):
    runs = []
    for rate in ("0.01", "0.1"):
        for seed in ("1", "2"):
            folder = tmp_path / f"{rate}-{seed}"
            run_tiny(run_dir=str(folder), optimizer={"lr": float(rate)}, seed=int(seed))
            runs.append(SweepRun(values={"optimizer.lr": rate, "seed": seed}, folder=folder))
    runs.append(SweepRun(values={"optimizer.lr": "0.2", "seed": "1"}, folder=tmp_path / "none"))
    rows = summary(runs)
    assert [row["ended"] for row in rows] == [2, 2, 0] and rows[-1]["states"] == ["not started"]
    means = [row["losses"]["eval/held_out/loss"][0] for row in rows[:2]]
    assert means == sorted(means) and rows[0]["losses"]["loss"][1] > 0
    assert {row["values"]["optimizer.lr"] for row in rows} == {"0.01", "0.1", "0.2"}


STOPS = """
import os, signal
from pathlib import Path

@hookimpl
def on_step_end(trainer):
    mark = Path("stopped")
    if trainer.seed_of_stop == trainer.recipe.seed and trainer.global_step == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGTERM)

@hookimpl
def on_train_start(trainer):
    trainer.seed_of_stop = 43
    note(seed=trainer.recipe.seed, step=trainer.global_step)
"""


def test_a_sweep_goes_on_where_it_was_interrupted(run_cli, rank_notes, tmp_path):
    recipe: dict[str, Any] = {
        "type": "tiny",
        "run_dir": str(tmp_path / "tiny"),
        "micro_batch_size": 2,
        "strategy": {"dtype": "fp32", "device": "cpu"},
        "checkpoint": [{"type": "full", "save_every_n_steps": 2}],
        "plugins": {"load": ["hooktrain.testing:TinyPlugin", "extra"]},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    words = ("sweep", "tiny.yaml", "-o", "optimizer.lr=0.01", "--seeds", "2")
    first = run_cli(*words, source=STOPS)
    assert first.status == 143, first.output
    assert "interrupted; the same command goes on from here" in first.stdout
    second = run_cli(*words, "--json", source=STOPS)
    assert second.status == 0, second.output
    assert [(note["seed"], note["step"]) for note in rank_notes()] == [(42, 0), (43, 0), (43, 3)]
    found = json.loads(second.stdout)
    (row,) = found["rows"]
    assert (row["ended"], row["values"], found["folder"]) == (2, {}, str(tmp_path / "tiny-sweep"))
    assert Path(found["report"]).read_text().count("seed=4") >= 2
    assert sorted(path.name for path in (tmp_path / "tiny-sweep").iterdir() if path.is_dir()) == ["seed=42", "seed=43"]


def test_words_that_exclude_each_other(run_cli, tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({"type": "tiny", "plugins": LOAD}))
    assert "--seeds and -o seed=" in run_cli("sweep", "tiny.yaml", "-o", "seed=1,2", "--seeds", "2").stderr
    assert "is given twice" in run_cli("sweep", "tiny.yaml", "-o", "epochs=1", "-o", "epochs=2").stderr
