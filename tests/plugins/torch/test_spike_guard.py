"""``spike_guard``: steps whose loss jumps are left out or rolled back, on all ranks, and written down."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch

from hooktrain import HooktrainError, HooktrainWarning, LossSum, hookimpl
from hooktrain.testing import Recorder
from tests.facts import facts

GUARD: dict[str, Any] = {"threshold": 3.0, "window": 2}
RUN: dict[str, Any] = {"train_iters": 7, "optimizer": {"type": "adamw", "lr": 0.01}, "strategy": {"dtype": "fp32"}}


class Spikes:
    """Multiplies the loss of some steps, and keeps the weights after each."""

    def __init__(self, *steps: int, by: float = 10.0) -> None:
        self.steps, self.by = steps, by
        self.weights: list[torch.Tensor] = []
        self.said: list[str] = []

    @hookimpl(wrapper=True)
    def compute_loss(self, trainer):
        loss = yield
        spikes = trainer.model.training and trainer.global_step + 1 in self.steps
        return LossSum(loss.total * self.by, loss.denominator) if spikes else loss

    @hookimpl
    def on_step_end(self, trainer):
        self.weights.append(trainer.model.head.weight.detach().clone())

    @hookimpl
    def on_message(self, message):
        self.said.append(message)


@pytest.mark.parametrize("by", [10.0, float("inf")])
def test_a_spike_is_skipped_and_its_examples_are_written(run_tiny, tmp_path, by):
    spikes = Spikes(4, by=by)
    trainer = run_tiny(spikes, spike_guard=GUARD, gradient_accumulation_steps=2, on_nan="skip", **RUN)
    after = spikes.weights
    assert torch.equal(after[3], after[2]) and not torch.equal(after[4], after[3])
    assert trainer.state.skipped_steps == 1 and trainer.state.consecutive_skipped_steps == 0
    assert re.search(facts("step 4", "loss was", "mean of"), trainer.state.first_skipped)
    (line,) = [json.loads(text) for text in (tmp_path / "run" / "spikes.jsonl").read_text().splitlines()]
    assert (line["step"], line["action"], isinstance(line["loss"], str)) == (4, "skip", by == float("inf"))
    assert line["examples"] == [f"row {row}" for row in trainer.loader.order(0).tolist()[12:16]]
    assert any(re.search(facts("spike_guard", "step 4 is skipped", "spikes.jsonl"), text) for text in spikes.said)


@pytest.mark.parametrize(("by", "steps"), [(float("nan"), [1]), (-10.0, range(1, 8))])
def test_a_loss_that_is_no_number_or_negative_makes_no_spikes_of_what_follows(run_tiny, tmp_path, by, steps):
    trainer = run_tiny(Spikes(*steps, by=by), spike_guard=GUARD, on_nan="skip", **RUN)
    assert trainer.global_step == 7 and not (tmp_path / "run" / "spikes.jsonl").exists()


def test_a_file_that_cannot_be_written_is_a_warning_with_the_examples(run_tiny, tmp_path):
    (tmp_path / "run" / "spikes.jsonl").mkdir(parents=True)
    with pytest.warns(HooktrainWarning, match=facts("spikes.jsonl", "cannot be written", "row ")):
        assert run_tiny(Spikes(4), spike_guard=GUARD, **RUN).global_step == 7


def test_without_spikes_it_changes_nothing(run_tiny):
    one, two = Recorder(), Recorder()
    run_tiny(one, **RUN)
    run_tiny(two, spike_guard=GUARD, **RUN)
    assert [line["loss"] for line in two.metrics] == [line["loss"] for line in one.metrics]
    assert "spikes" in two.metrics[-1] and "spikes" not in one.metrics[-1]


def test_roll_back_restores_an_older_state(run_tiny):
    """Copies are made at the start and after steps 2 and 4, and the older of two is taken."""
    spikes = Spikes(6)
    trainer = run_tiny(spikes, spike_guard={**GUARD, "action": "roll_back"}, **RUN)
    after = spikes.weights
    assert torch.equal(after[5], after[1]) and not torch.equal(after[6], after[5])
    (steps,) = {int(state["step"]) for state in trainer.optimizer.state.values()}
    assert steps == 3, "two before the copy, and one after it"


def test_spikes_that_do_not_end_are_an_error(run_tiny):
    with pytest.raises(
        HooktrainError, match=facts("step 5", "2 steps in a row", "spike_guard.patience", "spikes.jsonl")
    ):
        run_tiny(Spikes(4, 5, 6), spike_guard={**GUARD, "patience": 2}, **RUN)


def test_a_resume_repeats_the_run(run_tiny, tmp_path):
    one, two = Recorder(), Recorder()
    settings = {**RUN, "spike_guard": GUARD, "checkpoint": {"type": "full", "save_every_n_steps": 3}}
    run_tiny(one, Spikes(4), **settings)
    path = tmp_path / "run" / "checkpoints" / "step-00000003"
    run_tiny(two, Spikes(4), trainer={"resume_from": path}, run_dir=str(tmp_path / "rest"), **settings)
    assert [line.get("loss") for line in two.metrics] == [line.get("loss") for line in one.metrics][3:]
    assert two.metrics[-1]["skipped_steps"] == one.metrics[-1]["skipped_steps"] == 1


def test_roll_back_after_a_resume_goes_back_to_the_resume_at_most_and_says_so(run_tiny, tmp_path):
    full = {"type": "full", "save_every_n_steps": 3}
    settings = {**RUN, "spike_guard": {**GUARD, "action": "roll_back"}, "checkpoint": full}
    begun = Spikes()
    run_tiny(begun, exit_iteration=3, **settings)
    path = tmp_path / "run" / "checkpoints" / "step-00000003"
    rest = Spikes(4, 7)
    run_tiny(rest, trainer={"resume_from": path}, run_dir=str(tmp_path / "rest"), **settings)
    assert torch.equal(rest.weights[0], begun.weights[2]), "step 4 goes back to the resumed step"
    assert torch.equal(rest.weights[3], rest.weights[0]), "and step 7 to the copy after step 4, as without a break"
    assert any(re.search(facts("spike_guard", "until step 6", "step 3", "resumed"), text) for text in rest.said)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "strategy",
    [
        {"dtype": "fp32", "device": "cpu"},
        {"dtype": "fp32", "device": "cpu", "data_parallel": "fsdp2"},
        {"type": "deepspeed", "zero_stage": 2, "dtype": "fp32", "device": "cpu"},
    ],
)
def test_ranks_agree_on_a_spike_of_one_of_them(run_ranks, strategy):
    code = """
@hookimpl(wrapper=True)
def compute_loss(trainer):
    loss = yield
    one = trainer.world.rank == 1 and trainer.global_step == 3 and trainer.model.training
    return type(loss)(loss.total * 20, loss.denominator) if one else loss
"""
    action = "skip" if strategy.get("type") else "roll_back"
    guard = {**GUARD, "action": action}
    run = run_ranks(2, code, spike_guard=guard, micro_batch_size=1, **{**RUN, "strategy": strategy, "epochs": 2})
    assert run.status == 0, run.output
    assert run.metrics[-1]["skipped_steps"] == run.metrics[-1]["spikes"] == 1
    (line,) = [json.loads(text) for text in (run.folder / "spikes.jsonl").read_text().splitlines()]
    assert line["step"] == 4 and len(line["examples"]) == 2


@pytest.mark.parametrize(
    ("settings", "more", "message"),
    [
        ({"window": 3}, {}, ["spike_guard.threshold", "never looks"]),
        ({"threshold": 0.5}, {}, ["spike_guard.threshold", "given 0.5", "more than 1"]),
        ({"threshold": 2, "action": "rollback"}, {}, ["spike_guard.action", "'rollback'", "'roll_back'"]),
        (
            {"threshold": 2, "action": "roll_back"},
            {"strategy": {"type": "deepspeed", "device": "cpu"}},
            ["spike_guard.action", "strategy: torch", "action: skip"],
        ),
    ],
)
def test_what_is_wrong_in_a_recipe_is_said(run_tiny, settings, more, message):
    with pytest.raises(HooktrainError) as caught:
        run_tiny(spike_guard=settings, **{**RUN, **more})
    assert re.search(facts(*message), str(caught.value))


def test_a_limit_alone_stops_a_run_whose_steps_it_keeps(run_tiny):
    guard = {"max_loss": 5.0, "action": "keep", "patience": 2}
    spikes = Spikes(1, 4, 5)
    with pytest.raises(HooktrainError, match=facts("step 5", "2 steps in a row", "max_loss", "5", "patience")):
        run_tiny(spikes, spike_guard=guard, **RUN)
    after = spikes.weights
    assert not torch.equal(after[3], after[2]), "updated nevertheless"
    assert sum("not skipped" in text for text in spikes.said) == 3
