"""What the loss is divided by: a number in a unit of the plugin's own, summed over window and ranks, divided once."""

from __future__ import annotations

from collections import defaultdict

import pytest

from hooktrain import BatchCounts, LoopHookError, LossSum, NonFiniteError, hookimpl
from hooktrain.testing import Recorder
from tests.facts import facts


class Pairs:
    """Counts half a pair for each sequence, and keeps what the trainer divided by."""

    def __init__(self, counted: str = "pairs", summed: str = "pairs") -> None:
        self.counted, self.summed = counted, summed
        self.losses: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
        self.divisors: dict[int, float] = {}

    @hookimpl
    def count_batch(self, batch):
        return BatchCounts(len(batch["input_ids"]) / 2, batch["input_ids"].numel(), 3, self.counted)

    @hookimpl(wrapper=True)
    def compute_loss(self):
        loss = yield
        return loss._replace(counts=self.summed)

    @hookimpl
    def on_microbatch_end(self, trainer, loss):
        step = trainer.global_step + 1
        self.losses[step].append((float(loss.total), loss.denominator))
        self.divisors[step] = trainer.denominator


def test_a_loss_is_divided_by_its_own_unit(run_tiny):
    pairs, recorder = Pairs(), Recorder()
    trainer = run_tiny(pairs, recorder, gradient_accumulation_steps=2, data={"eval_rows": 0})
    for line in recorder.metrics:
        losses = pairs.losses[line["step"]]
        divisor = sum(denominator for _, denominator in losses)
        assert pairs.divisors[line["step"]] == divisor and divisor % 0.5 == 0
        assert line["loss"] == pytest.approx(sum(total for total, _ in losses) / divisor)
    assert {0.5, 1.0} & {denominator for losses in pairs.losses.values() for _, denominator in losses} >= {0.5, 1.0}
    micro_batches = sum(map(len, pairs.losses.values()))
    assert trainer.state.supervised_tokens == 3 * micro_batches, "trained tokens, whatever the denominator counts"


def test_a_loss_in_another_unit_than_the_count_is_refused(run_tiny):
    expected = facts("compute_loss", "a denominator of 1.0 sequences", "counts='pairs'")
    with pytest.raises(LoopHookError, match=expected):
        run_tiny(Pairs(summed="sequences"))


def test_one_run_counts_in_one_unit(run_tiny):
    class Changes:
        calls = 0

        @hookimpl
        def count_batch(self, batch):
            self.calls += 1
            return BatchCounts(1, 1, 1, "tokens" if self.calls == 1 else "sequences")

    with pytest.raises(LoopHookError, match=facts("count_batch", "'sequences'", "'tokens'")):
        run_tiny(Changes(), gradient_accumulation_steps=2)


def test_a_count_that_is_a_number_is_refused(run_tiny):
    class Number:
        @hookimpl
        def count_batch(self):
            return 5

    with pytest.raises(
        LoopHookError,
        match=facts("count_batch", "returned int", "'Number'", "BatchCounts(denominator, tokens, num_target_tokens)"),
    ):
        run_tiny(Number())


def test_a_window_whose_denominator_is_zero_moves_nothing(run_tiny):
    class Nothing:
        skipped = 0

        @hookimpl
        def on_step_end(self, trainer):
            self.skipped = trainer.state.skipped_steps

        @hookimpl
        def count_batch(self):
            return BatchCounts(0.0, 4, 0)

        @hookimpl
        def compute_loss(self, model, batch, denominator):
            return LossSum(model(batch["input_ids"]).sum() * 0, denominator)

    nothing = Nothing()
    with pytest.raises(NonFiniteError, match=facts("2 of 2", "nothing was supervised")):
        run_tiny(nothing, train_iters=2, data={"eval_rows": 0})
    assert nothing.skipped == 2
