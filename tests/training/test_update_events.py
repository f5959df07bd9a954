"""Events inside the optimizer step: after clipping, and before gradients are cleared, under every strategy."""

from __future__ import annotations

import pytest
import torch

from hooktrain import HooktrainError, NonFiniteError, hookimpl
from tests.facts import facts
from tests.plugins.deepspeed.zero import zero
from tests.preload import DEEPSPEED

pytestmark = pytest.mark.preload(*DEEPSPEED)

TORCH = {"dtype": "fp32", "device": "cpu"}
LIMIT = 0.01


class Updates:
    """Notes the events of a step in their order, with what is seen there."""

    def __init__(self, with_gradients: bool) -> None:
        self.with_gradients, self.events = with_gradients, []

    def look(self, trainer, name, norm=None):
        weights = list(trainer.model.parameters())
        total = None
        if self.with_gradients and all(weight.grad is not None for weight in weights):
            total = float(torch.nn.utils.get_total_norm([weight.grad for weight in weights]))
        moved = not torch.equal(weights[0], self.before) if weights[0].numel() else None
        self.events.append((name, total, None if norm is None else float(norm), moved))

    @hookimpl
    def on_optimizer_step_start(self, trainer):
        self.before = next(trainer.model.parameters()).detach().clone()

    @hookimpl
    def on_optimizer_update_start(self, trainer, grad_norm):
        self.look(trainer, "update", grad_norm)

    @hookimpl
    def on_zero_grad_start(self, trainer):
        self.look(trainer, "zero grad")

    @hookimpl
    def on_optimizer_step_end(self, trainer, grad_norm):
        self.look(trainer, "end", grad_norm)


STRATEGIES = [TORCH, zero(0), pytest.param(zero(1), marks=pytest.mark.thorough), zero(2), zero(3)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_events_of_an_update(run_tiny, strategy):
    stage = strategy.get("zero_stage", 0)
    updates = Updates(with_gradients=stage == 0)
    run_tiny(updates, strategy=strategy, train_iters=2, gradient_clipping=LIMIT)
    assert [name for name, *_ in updates.events] == ["update", "zero grad", "end"] * 2
    for update, zeroed, end in zip(updates.events[0::3], updates.events[1::3], updates.events[2::3], strict=True):
        assert update[2] == pytest.approx(end[2]) and end[2] > LIMIT, "the norm before clipping"
        if stage == 0:
            assert update[1] == pytest.approx(LIMIT, rel=1e-3) and zeroed[1] == update[1], "clipped, and still there"
        if stage < 3:
            assert (update[3], zeroed[3]) == (False, True)


def test_a_skipped_update_only_clears(run_tiny):
    class Infinite:
        @hookimpl(wrapper=True)
        def compute_loss(self):
            loss = yield
            return loss._replace(total=loss.total * float("inf"))

    updates = Updates(with_gradients=False)
    with pytest.raises(NonFiniteError, match="updated no weight"):
        run_tiny(updates, Infinite(), train_iters=1, on_nan="skip", data={"eval_rows": 0}, strategy=TORCH)
    assert [name for name, *_ in updates.events] == ["zero grad", "end"]


def test_a_strategy_that_cannot_call_them_is_named(run_tiny, monkeypatch):
    from hooktrain_torch import TorchStrategy

    monkeypatch.delattr(TorchStrategy, "watch_updates")
    with pytest.raises(HooktrainError, match=facts("'Updates'", "on_optimizer_update_start", "TorchStrategy")):
        run_tiny(Updates(with_gradients=True), train_iters=1)
