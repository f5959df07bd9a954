from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hooktrain import Batch, RecipeError, Trainer, hookimpl
from hooktrain.testing import Recorder, conformance

import by_tokens

Run = Callable[..., Trainer]
MOST = {"by_tokens": {"most": 24}}


class Batches:
    """Keeps the size of each micro-batch."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    @hookimpl
    def on_microbatch_start(self, batch: Batch) -> None:
        self.tokens.append(batch["input_ids"].numel())


def test_each_row_is_trained_on_once_an_epoch(run_tiny: Run) -> None:
    batches = Batches()
    trainer = run_tiny(by_tokens, batches, epochs=2, **MOST)
    loader: Any = trainer.loader
    rows = len(trainer.data.train)
    assert sorted(loader.rows_of(1, 0, rows)) == list(range(rows))
    assert max(batches.tokens) <= 24 and trainer.state.epoch == 2
    assert len(batches.tokens) == trainer.global_step < 2 * rows
    assert trainer.global_step == 2 * len(trainer.loader)


def test_a_resumed_run_reads_the_same_rows(
    run_tiny: Run, tmp_path: Path
) -> None:
    saves = {"type": "full", "save_every_n_steps": 3}
    settings = {"checkpoint": saves, **MOST}
    whole, rest = Recorder(), Recorder()
    first = run_tiny(by_tokens, whole, epochs=2, **settings)
    path = first.run_dir / "checkpoints" / "step-00000003"
    settings |= {"trainer": {"resume_from": path}}
    run_tiny(
        by_tokens, rest, run_dir=str(tmp_path / "2"), epochs=2, **settings
    )
    losses = [line["loss"] for line in whole.metrics]
    assert [line["loss"] for line in rest.metrics] == losses[3:]


test_conformance = conformance(
    by_tokens,
    settings=MOST,
    changes_gradients=True,
    checks=["hooks", "ranks"],
)


def test_a_row_that_is_too_long_is_alone(run_tiny: Run) -> None:
    batches = Batches()
    run_tiny(by_tokens, batches, epochs=1, by_tokens={"most": 1})
    assert len(batches.tokens) == 13


@pytest.mark.parametrize("most", [-1, "many"])
def test_another_number_is_refused(run_tiny: Run, most: object) -> None:
    with pytest.raises(RecipeError, match=r"by_tokens\.most"):
        run_tiny(by_tokens, by_tokens={"most": most})
