"""The ``torch`` strategy on several ranks: real processes, started as a user starts them."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from hooktrain.testing.subprocess_runs import NOTES
from tests.facts import facts
from tests.launching import alone, assert_equal_runs, weights_at
from tests.preload import DEEPSPEED

READING = """
class Noting:
    def __init__(self, rows, name):
        self.rows, self.name = rows, name

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        note(set=self.name, row=index)
        return self.rows[index]

@hookimpl(wrapper=True)
def make_data():
    data = yield
    data.train = Noting(data.train, "train")
    data.evaluation = {name: Noting(rows, name) for name, rows in data.evaluation.items()}
    return data

@hookimpl
def on_train_start():
    import torch
    note(drawn=torch.rand(()).item())

@hookimpl
def on_optimizer_step_start(trainer):
    note(gradients={name: p.grad.tolist() for name, p in trainer.model.named_parameters()})

@hookimpl
def on_evaluate_start(trainer):
    note(evaluation=trainer.global_step)
"""


def test_two_ranks_are_one_global_batch(run_ranks, rank_notes, run_tiny):
    """(2, 2, 2) is (8, 1, 1) and (2, 4, 1): 13 rows in windows of 8 and 5, ragged masks, evaluation of every row."""
    common = {"epochs": 2, "eval_interval": 3, "gradient_clipping": 0.2}
    saved = {"type": "full", "save_end_of_training": True}
    run = run_ranks(2, READING, gradient_accumulation_steps=2, checkpoint=saved, **common)
    from hooktrain import hookimpl

    class Note:
        def __init__(self):
            self.gradients = []

        @hookimpl
        def on_optimizer_step_start(self, trainer):
            self.gradients.append({name: p.grad.clone() for name, p in trainer.model.named_parameters()})

    for micro, accumulation in ((8, 1), (2, 4)):
        note = Note()
        one = alone(run_tiny, note, micro_batch_size=micro, gradient_accumulation_steps=accumulation, **common)
        assert_equal_runs(run, *one)
        for rank in (0, 1):
            theirs = [line["gradients"] for line in rank_notes(rank) if "gradients" in line]
            assert len(theirs) == len(note.gradients) == 4
            for found, expected in zip(theirs, note.gradients, strict=True):
                for name, value in expected.items():
                    torch.testing.assert_close(torch.tensor(found[name]), value, rtol=0, atol=1e-6)
    one, other = ([line["drawn"] for line in rank_notes(rank) if "drawn" in line] for rank in (0, 1))
    assert len(one) == len(other) == 1 and one != other, "ranks draw dropout of their own"
    read = [[line["row"] for line in rank_notes(rank) if line.get("set") == "held_out"] for rank in (0, 1)]
    assert read == [[0, 1, 4, 0, 1, 4], [2, 3, 0, 2, 3, 0]], "each row once; the second 0 of rank 1 only fills a place"
    assert [line["row"] for line in rank_notes(0) if line.get("set") == "train"] != list(range(13)), "rows are shuffled"


def test_a_rank_without_sequences(run_ranks, run_tiny):
    """9 rows in micro-batches of 4 on two ranks: the last accumulation window is one sequence, on rank 0."""
    data = {"rows": 9, "eval_rows": 1}
    run = run_ranks(
        2, micro_batch_size=4, data=data, epochs=3, checkpoint={"type": "full", "save_end_of_training": True}
    )
    assert_equal_runs(run, *alone(run_tiny, micro_batch_size=8, data=data, epochs=3))


@pytest.mark.thorough
def test_four_ranks(run_ranks, run_tiny):
    saved = {"type": "full", "save_end_of_training": True}
    settings = {"optimizer": {"type": "adamw", "lr": 0.01}, "scheduler": {"type": "cosine"}}
    run = run_ranks(4, micro_batch_size=1, gradient_accumulation_steps=2, checkpoint=saved, **settings)
    assert_equal_runs(run, *alone(run_tiny, micro_batch_size=8, **settings))


UNEVEN = """
@hookimpl(wrapper=True)
def make_model():
    model = yield
    model.tied = model.head
    model.register_buffer("counted", torch.zeros(3))
    model.never = torch.nn.Linear(2, 2)
    model.sometimes = torch.nn.Parameter(torch.ones(()))
    return model

@hookimpl(wrapper=True)
def compute_loss(trainer, batch, denominator):
    loss = yield
    if denominator and (batch["input_ids"] == 3).any():
        loss = loss._replace(total=loss.total * trainer.model.sometimes)
    return loss
"""


def test_parameters_without_a_gradient(run_ranks, run_tiny, tmp_path, monkeypatch):
    """One is never used, one only by rows with a certain token; a module is in the model twice."""
    settings = {"gradient_accumulation_steps": 2, "epochs": 2, "optimizer": {"type": "adamw", "lr": 0.01}}
    saved = {"type": "full", "save_end_of_training": True}
    strategy = {"dtype": "fp32", "device": "cpu", "find_unused_parameters": True}
    run = run_ranks(2, UNEVEN, strategy=strategy, checkpoint=saved, **settings)
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    namespace: dict[str, Any] = {}
    exec(NOTES + UNEVEN, namespace)
    plugin = type("Uneven", (), {name: staticmethod(namespace[name]) for name in ("make_model", "compute_loss")})()
    assert_equal_runs(run, *alone(run_tiny, plugin, **{**settings, "gradient_accumulation_steps": 4}))
    assert float(weights_at(run, 4)["sometimes"]) != 1.0


def test_parameters_without_a_gradient_are_named(run_ranks):
    run = run_ranks(2, UNEVEN, gradient_accumulation_steps=2)
    assert run.status != 0
    assert re.search(r"strategy.*no gradient.*\bnever\.weight\b.*find_unused_parameters: true", run.output)


SUMS = """
@hookimpl
def on_train_start(trainer):
    rank = trainer.world.rank
    note(sums=trainer.strategy.sum_numbers([[0.5, 0.25][rank], [2**53 - 1, 0][rank], [2**53 - 2, 1][rank], 1e-300]))
"""


@pytest.mark.preload(*DEEPSPEED)
@pytest.mark.parametrize(
    "strategy", [{"type": "torch"}, pytest.param({"type": "deepspeed", "zero_stage": 1}, marks=pytest.mark.thorough)]
)
def test_numbers_are_summed_in_float64(run_ranks, rank_notes, strategy):
    run = run_ranks(2, SUMS, strategy={**strategy, "dtype": "fp32", "device": "cpu"}, train_iters=1)
    assert run.status == 0, run.output
    assert rank_notes(0) == rank_notes(1) == [{"sums": [0.75, 2**53 - 1, 2**53 - 1, 2e-300]}]


# -------------------------------------------------------------------------------------------------- agreement

ASK = """
@hookimpl
def on_step_end(trainer):
    note(step=trainer.global_step)
    if trainer.world.rank == 1 and trainer.global_step == 2:
        trainer.request_evaluation()
        trainer.request_save()
    if trainer.world.rank == 1 and trainer.global_step == 4:
        trainer.request_stop("rank 1 has had enough")

@hookimpl
def on_evaluate_end(trainer):
    note(evaluated=trainer.global_step)

@hookimpl
def on_checkpoint_end(trainer):
    note(saved=trainer.global_step)

@hookimpl
def on_train_end(trainer):
    note(ended=trainer.global_step)
"""


def test_a_request_of_one_rank_is_made_on_all(run_ranks, rank_notes):
    run = run_ranks(2, ASK, micro_batch_size=1, checkpoint={"type": "full"})
    assert run.status == 0, run.output
    steps = [{"step": 1}, {"step": 2}, {"evaluated": 2}, {"saved": 2}, {"step": 3}, {"step": 4}]
    assert rank_notes(0) == rank_notes(1) == [*steps, {"evaluated": 4}, {"ended": 4}]


SCRIPT = """
import os, sys
{what}
from hooktrain.cli.main import main
main()
"""


@pytest.mark.parametrize(
    ("what", "difference"),
    [
        ("sys.argv += ['-o', 'seed=' + os.environ['RANK']]", r"recipe, seed\b.*\b1\b.*\b0\b"),
        (
            "os.environ['HOOKTRAIN_PLUGINS'] = ['', 'extra'][int(os.environ['RANK'])]",
            r"plugins, extra\b.*only in rank 1",
        ),
    ],
    ids=["recipe", "plugins"],
)
def test_ranks_that_differ_refuse_to_start(run_ranks, rank_notes, tmp_path, what, difference):
    load = {"load": ["hooktrain.testing:TinyPlugin"]}
    run = run_ranks(2, ASK, script=SCRIPT.format(what=what), plugins=load)
    assert run.status != 0
    assert re.search(rf"rank 1.*rank 0.*{difference}", run.output)
    assert not (tmp_path / "ranks" / "metrics.jsonl").exists()


RAISE = """
@hookimpl
def on_microbatch_start(trainer):
    if trainer.world.rank == 1 and trainer.global_step == 2:
        raise KeyError("out of luck")

@hookimpl
def on_teardown(trainer):
    note(torn_down=trainer.global_step)
"""


def test_one_rank_that_raises_ends_all(run_ranks, rank_notes):
    run = run_ranks(2, RAISE, micro_batch_size=1, epochs=1000)
    assert run.status != 0
    where = facts("'extra'", "on_microbatch_start", "step 2", "rank 1", "KeyError: 'out of luck'")
    assert any(re.search(where, line) for line in run.output.splitlines())
    assert rank_notes(1) == [{"torn_down": 2}]


FULL = """
import resource

@hookimpl(wrapper=True)
def save_checkpoint(trainer):
    if trainer.world.rank == 1:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    return (yield)

@hookimpl
def on_exception(exception):
    note(kind=type(exception).__name__, text=str(exception))
"""


def test_a_rank_that_cannot_save_tells_the_others(run_ranks, rank_notes, tmp_path):
    run = run_ranks(2, FULL, checkpoint={"type": "full", "save_every_n_steps": 2})
    assert run.status != 0
    (first,), (second,) = rank_notes(0), rank_notes(1)
    assert first == second
    assert first["kind"] == "CheckpointError"
    assert re.search(facts("step-00000002", "rank 1", "no earlier", "File too large"), first["text"])
    assert list((tmp_path / "ranks" / "checkpoints").iterdir()) == []


def test_a_resume_on_two_ranks_repeats_the_undisturbed_run(run_ranks, run_tiny, tmp_path):
    """With dropout, which each rank draws for itself; and one process can resume from what two have saved."""
    settings = {
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "epochs": 2,
        "model": {"dropout": 0.3},
        "optimizer": {"type": "adamw", "lr": 0.01},
        "checkpoint": {"type": "full", "save_every_n_steps": 3, "save_end_of_training": True},
    }
    undisturbed = run_ranks(2, **settings)
    assert undisturbed.status == 0, undisturbed.output
    path = undisturbed.folder / "checkpoints" / "step-00000003"
    rest = run_ranks(2, words=["--resume", str(path)], **{**settings, "run_dir": str(tmp_path / "rest")})
    rest = rest.of(tmp_path / "rest")
    assert rest.status == 0, rest.output
    assert [line["loss"] for line in rest.metrics] == [line["loss"] for line in undisturbed.metrics][3:]
    for name, value in weights_at(undisturbed, 8).items():
        assert torch.equal(value, weights_at(rest, 8)[name])
    settings["gradient_accumulation_steps"] = 4
    recorder, trainer = alone(run_tiny, **settings, trainer={"resume_from": path})
    said = [given["message"] for name, given in recorder.calls if name == "on_message"]
    assert any(re.search(facts("world_size", "was 2", "is 1", "dropout"), text) for text in said)
    assert trainer.global_step == 8
    for name in ("tokens", "supervised_tokens", "epoch", "lr"):
        assert [line[name] for line in recorder.metrics] == [line[name] for line in undisturbed.metrics][3:]
