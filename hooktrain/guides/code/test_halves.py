from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hooktrain import CheckpointError, Trainer, hookimpl

import halves

Run = Callable[..., Trainer]
SAVES = {"type": "halves", "save_every_n_steps": 2}


def test_the_weights_of_each_save(run_tiny: Run) -> None:
    trainer = run_tiny(halves, train_iters=4, checkpoint=SAVES)
    folder = trainer.run_dir / "halves"
    found = sorted(path.name for path in folder.iterdir())
    assert found == ["step-00000002.pt", "step-00000004.pt"]
    weights = torch.load(folder / found[1])
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(weights[name], value.half()), name


def test_what_cannot_be_written_is_said(run_tiny: Run) -> None:
    class InTheWay:
        @hookimpl
        def on_step_end(self, trainer: Trainer) -> None:
            name = f"step-{trainer.global_step:08d}.writing"
            (trainer.run_dir / "halves" / name).mkdir(parents=True)

    with pytest.raises(CheckpointError, match="make room"):
        run_tiny(halves, InTheWay(), train_iters=2, checkpoint=SAVES)


def test_what_was_interrupted_is_deleted(run_tiny: Run) -> None:
    first = run_tiny(halves, train_iters=2, checkpoint=SAVES)
    torn = first.run_dir / "halves" / "step-00000001.writing"
    torn.write_bytes(b"half")
    run_tiny(halves, train_iters=2, checkpoint={**SAVES, "overwrite": True})
    assert not torn.exists()


def test_the_results_of_another_run_are_kept(run_tiny: Run) -> None:
    run_tiny(halves, train_iters=2, checkpoint=SAVES)
    with pytest.raises(CheckpointError, match="overwrite"):
        run_tiny(halves, train_iters=2, checkpoint=SAVES)
