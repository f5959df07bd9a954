"""``micro_batch_size: auto``: the largest divisor of ``global_batch_size`` that fits, the same on all ranks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from hooktrain import HooktrainError, PluginInfo, RecipeError, hookimpl
from hooktrain.inspection.plan import read_plan
from hooktrain.inspection.plan_text import print_plan
from hooktrain.training.batch_trial import longest_rows
from tests.facts import facts

LOAD = {"load": ["hooktrain.testing.tiny_plugin:TinyPlugin"]}
WIDE = {"data": {"rows": 16, "length": 160, "eval_rows": 0}, "model": {"width": 16_000}}
"""A micro-batch takes about 60 MiB for each of its sequences, and the model nearly nothing."""


def sizes_of(folder: Path) -> tuple[Any, Any]:
    kept = yaml.safe_load((folder / "recipe.yaml").read_text())
    return kept["micro_batch_size"], kept["global_batch_size"]


def test_everything_that_fits_is_one_micro_batch(run_tiny, tmp_path):
    trainer = run_tiny(micro_batch_size="auto", global_batch_size=6, memory_limit="64GiB", epochs=1)
    assert (trainer.recipe.micro_batch_size, trainer.recipe.gradient_accumulation_steps) == (6, 1)
    assert sizes_of(tmp_path / "run") == (6, 6)
    plain = run_tiny(micro_batch_size=2, gradient_accumulation_steps=3, run_dir=str(tmp_path / "plain"))
    assert [line["loss"] for line in trainer.history] == pytest.approx([line["loss"] for line in plain.history])


def test_a_small_limit_gives_a_smaller_batch_with_equal_losses(run_tiny, real_starts, tmp_path):
    said: list[str] = []

    class Messages:
        hooktrain_plugin = PluginInfo(only_observes=True)

        @hookimpl
        def on_message(self, message: str) -> None:
            said.append(message)

    settings = {**WIDE, "global_batch_size": 16, "train_iters": 2}
    trainer = run_tiny(Messages(), micro_batch_size="auto", memory_limit="1GiB", **settings)
    size = trainer.recipe.micro_batch_size
    assert 1 <= size < 16 and sizes_of(tmp_path / "run") == (size, 16)
    assert any(
        re.search(facts(f"micro_batch_size: {size}", "the largest that fits", "1,024 MiB"), text) for text in said
    )
    losses = {}
    for other in (size, 1):
        run = run_tiny(micro_batch_size=other, run_dir=str(tmp_path / str(other)), **settings)
        losses[other] = [line["loss"] for line in run.history]
    found = [line["loss"] for line in trainer.history]
    assert found == losses[size] and found == pytest.approx(losses[1], rel=1e-6)


def test_a_resumed_run_has_the_recorded_size(run_tiny, tmp_path, monkeypatch):
    settings = {"global_batch_size": 6, "memory_limit": "64GiB", "epochs": 2}
    checkpoint = {"type": "full", "save_every_n_steps": 1, "auto_resume": True}
    run_tiny(micro_batch_size=3, checkpoint=checkpoint, exit_iteration=2, **settings)

    def never(*given: Any) -> Any:
        raise AssertionError("nothing is tried")

    monkeypatch.setattr("hooktrain.training.batch_size._measured", never)
    trainer = run_tiny(micro_batch_size="auto", checkpoint=checkpoint, **settings)
    assert (trainer.recipe.micro_batch_size, trainer.history[0]["step"]) == (3, 3)


@pytest.mark.thorough
def test_ranks_have_the_same_size(run_ranks, rank_notes):
    source = """
    @hookimpl
    def on_train_start(trainer):
        if os.environ.get("RANK"):
            note(size=trainer.recipe.micro_batch_size, steps=trainer.recipe.gradient_accumulation_steps)
    """
    run = run_ranks(2, source, micro_batch_size="auto", global_batch_size=12, memory_limit="64GiB", train_iters=2)
    assert run.status == 0, run.output
    assert [rank_notes(rank)[-1] for rank in (0, 1)] == [{"size": 6, "steps": 1}] * 2
    small = run_ranks(2, source, micro_batch_size="auto", global_batch_size=12, memory_limit="10MiB", train_iters=2)
    assert small.status == 1
    assert re.search(facts("not even one row", "memory_limit"), small.stderr)


def test_what_observes_takes_no_part_in_the_trial(run_tiny, tmp_path):
    (tmp_path / "tracks.py").write_text(
        "import os\nfrom hooktrain import PluginInfo, hookimpl\n"
        "hooktrain_plugin = PluginInfo(only_observes=True)\n\n"
        f"@hookimpl\ndef on_train_start():\n    open({str(tmp_path / 'seen')!r}, 'a').write(f'{{os.getpid()}} ')\n"
    )
    run_tiny(
        micro_batch_size="auto",
        global_batch_size=4,
        memory_limit="64GiB",
        train_iters=1,
        plugins={"load": [str(tmp_path / "tracks.py")]},
    )
    assert len((tmp_path / "seen").read_text().split()) == 1


def test_a_trial_that_fails_says_why(run_tiny, tmp_path):
    (tmp_path / "breaks.py").write_text(
        "from hooktrain import hookimpl\n\n@hookimpl\ndef on_train_start():\n    raise ValueError('no such thing')\n"
    )
    with pytest.raises(HooktrainError, match=facts("micro_batch_size", "no such thing", "write a number")):
        run_tiny(
            micro_batch_size="auto",
            global_batch_size=4,
            memory_limit="64GiB",
            plugins={"load": [str(tmp_path / "breaks.py")]},
        )


def test_what_cannot_be_passed_to_another_process_is_named(run_tiny):
    class Local:
        @hookimpl
        def on_step_end(self) -> None: ...

    with pytest.raises(HooktrainError, match=facts("micro_batch_size", "Local", "write a number")):
        run_tiny(Local(), micro_batch_size="auto", global_batch_size=4, memory_limit="64GiB")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"micro_batch_size": "auto"}, ["micro_batch_size", "global_batch_size", "write global_batch_size: 32"]),
        ({"micro_batch_size": "auto", "global_batch_size": 4}, ["memory_limit: 12GiB", "processor"]),
        ({"micro_batch_size": "all"}, ["micro_batch_size", "'all'", "auto"]),
        ({"micro_batch_size": 0}, ["micro_batch_size", "0", "at least 1"]),
        ({"memory_limit": "12 gigs"}, ["memory_limit", "12 gigs", "12GiB"]),
    ],
)
def test_sizes_that_mean_nothing(run_tiny, changes, message):
    with pytest.raises(RecipeError, match=facts(*message)):
        run_tiny(**changes)


def test_the_longest_sequences_are_tried(run_tiny):
    trainer = run_tiny(train_iters=1)
    lengths = [len(trainer.data.train.rows[row][0]) for row in longest_rows(trainer, 3)]
    assert lengths == sorted((len(ids) for ids, _ in trainer.data.train.rows), reverse=True)[:3]


def test_the_plan_says_that_it_is_measured(tmp_path, capsys):
    path = tmp_path / "auto.yaml"
    recipe = {"type": "tiny", "micro_batch_size": "auto", "global_batch_size": 8, "memory_limit": "2GiB"}
    path.write_text(yaml.safe_dump({**recipe, "plugins": LOAD}))
    found = read_plan(path, nproc=2)
    assert found["complaints"] == []
    assert (found["recipe"]["micro_batch_size"], found["recipe"]["memory_limit"]) == ("auto", 2 * 2**30)
    assert found["estimates"]["steps"]["rows_per_step"] == 8
    assert json.loads(json.dumps(found))["recipe"]["micro_batch_size"] == "auto"
    print_plan(found)
    assert "measured at the start" in capsys.readouterr().out
