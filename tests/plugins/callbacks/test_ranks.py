"""Callbacks on two ranks: real processes, started as a user starts them."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.preload("lightning.pytorch", "lightning.pytorch.callbacks", "transformers.trainer_callback")

SOURCE = """
from lightning.pytorch.callbacks import Callback, EarlyStopping, Timer
from transformers import TrainerCallback

class OnOne(TrainerCallback):
    def on_step_end(self, args, state, control, **given):
        if state.global_step == 3 and args.process_index == 1:
            setattr(control, FLAG, True)
        note(step=state.global_step, ranks=args.world_size, main=state.is_world_process_zero)

class OnTheOther(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 3 and trainer.global_rank == 1:
            trainer.should_stop = True
        agreed = trainer.strategy.reduce_boolean_decision(trainer.global_rank == 1, all=False)
        said = trainer.strategy.broadcast(f"rank {trainer.global_rank}", src=1)
        mean = trainer.strategy.reduce(torch.tensor(float(trainer.global_rank)))
        note(step=trainer.global_step, agreed=agreed, said=said, mean=float(mean))

@hookimpl
def on_train_start():
    pass
"""


@pytest.mark.parametrize(
    ("flag", "steps"), [("should_training_stop", [1, 2, 3]), ("should_epoch_stop", [1, 2, 3, 4, 5, 6, 7])]
)
def test_a_flag_of_one_rank_holds_on_all(run_ranks, rank_notes, flag, steps):
    run = run_ranks(2, SOURCE.replace("FLAG", repr(flag)), epochs=2, callbacks=["extra.OnOne"])
    assert run.status == 0, run.output
    for rank in (0, 1):
        notes = rank_notes(rank)
        assert [note["step"] for note in notes] == steps
        assert {(note["ranks"], note["main"]) for note in notes} == {(2, rank == 0)}


def test_lightnings_decisions_are_made_by_all(run_ranks, rank_notes):
    run = run_ranks(2, SOURCE, epochs=2, callbacks=["extra.OnTheOther"])
    assert run.status == 0, run.output
    for rank in (0, 1):
        assert rank_notes(rank) == [{"step": n, "agreed": True, "said": "rank 1", "mean": 0.5} for n in (1, 2, 3)]


def test_early_stopping_and_trackers_of_both_families(run_ranks, tmp_path):
    early_stopping = "lightning.pytorch.callbacks.EarlyStopping"
    recipe = {
        "epochs": 9,
        "eval_interval": 1,
        "optimizer": {"type": "sgd", "lr": 50.0},
        "checkpoint": {"type": "full", "save_every_n_steps": 1, "auto_resume": True},
        "callbacks": [
            {"name": early_stopping, "monitor": "val_loss", "patience": 3},
            {"name": "transformers.EarlyStoppingCallback", "early_stopping_patience": 20},
            "transformers.integrations.TensorBoardCallback",
            "lightning.pytorch.callbacks.LearningRateMonitor",
        ],
    }
    run = run_ranks(2, **recipe)
    assert run.status == 0, run.output
    steps = run.metrics[-1]["step"]
    assert 4 <= steps < 30
    assert any(name.startswith("lr-") for name in run.metrics[-1])
    assert len(list((run.folder / "runs").iterdir())) == 1, "rank 0 alone writes event files"
    (run.folder / "checkpoints" / f"step-{steps:08d}").rename(tmp_path / "aside")
    again = run_ranks(2, **recipe)
    assert again.status == 0, again.output
    assert again.metrics[-1]["step"] == steps, "the counter continues where it was"
