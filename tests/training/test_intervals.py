"""When a run evaluates, saves and ends: epochs and fractions of one, tokens, a time, and numbers with units."""

from __future__ import annotations

import re
from typing import Any

import pytest

from hooktrain import HooktrainError, RecipeError, hookimpl
from hooktrain.testing import Recorder
from tests.facts import facts


class Evaluations:
    """Notes at which steps the run evaluates."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    @hookimpl
    def on_evaluate_end(self, trainer):
        self.steps.append(trainer.global_step)


# Thirteen sequences, two at once: seven steps in an epoch.


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"eval_interval": "epoch"}, [7, 14]),
        ({"eval_interval": 0.5}, [4, 7, 11, 14]),
        ({"eval_interval": "25%"}, [2, 4, 6, 7, 9, 11, 13, 14]),
        ({"eval_interval": 5}, [5, 10, 14]),
        ({"eval_interval": 3, "eval_delay": 7}, [9, 12, 14]),
        ({"eval_interval": "epoch", "eval_delay": 8}, [14]),
        ({"eval_interval": 0}, [14]),
    ],
)
def test_evaluations(run_tiny, settings, steps):
    evaluations = Evaluations()
    run_tiny(evaluations, epochs=2, **settings)
    assert evaluations.steps == steps


def test_an_epoch_that_is_cut_short_is_evaluated(run_tiny):
    class Cut:
        @hookimpl
        def on_step_end(self, trainer):
            if trainer.global_step == 3:
                trainer.request_epoch_end()

    evaluations = Evaluations()
    run_tiny(evaluations, Cut(), epochs=2, eval_interval="epoch")
    assert evaluations.steps == [3, 10]


@pytest.mark.parametrize(("epochs", "steps"), [(0.5, 4), (1.5, 11), (0.01, 1), (2, 14), ("50%", 4)])
def test_fractions_of_an_epoch(run_tiny, epochs, steps):
    trainer = run_tiny(epochs=epochs, scheduler={"type": "linear", "warmup_steps": 0})
    assert trainer.global_step == trainer.training_horizon == steps
    assert trainer.optimizer.param_groups[0]["lr"] == 0


def test_saves_after_fractions_of_an_epoch_and_a_resume(run_tiny, tmp_path):
    one, two = Recorder(), Recorder()
    settings: dict[str, Any] = {"epochs": 1.5, "checkpoint": {"type": "full", "save_every_n_epochs": 0.5}}
    run_tiny(one, **settings)
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [f"step-{step:08d}" for step in (4, 7, 11)]
    path = folder / "step-00000004"
    run_tiny(two, trainer={"resume_from": path}, run_dir=str(tmp_path / "rest"), **settings)
    assert [line["loss"] for line in two.metrics] == [line["loss"] for line in one.metrics][4:]


def test_max_tokens_ends_the_run_and_leaves_the_schedule(run_tiny):
    one, two = Recorder(), Recorder()
    run_tiny(one, scheduler={"type": "linear"})
    trainer = run_tiny(two, scheduler={"type": "linear"}, max_tokens=one.metrics[2]["tokens"])
    assert trainer.global_step == 3
    assert [line["lr"] for line in two.metrics] == [line["lr"] for line in one.metrics][:3]


class Clock:
    """A clock on which a step takes 10 seconds and a save 30."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    @hookimpl
    def on_step_start(self):
        self.now += 10

    @hookimpl(wrapper=True)
    def save_checkpoint(self):
        self.now += 30
        return (yield)


@pytest.mark.parametrize(
    ("every", "steps", "over"),
    [(2, 14, 350), (100, 37, 400)],  # saves on the way are as long as the last one; without them 5% are kept for it
    ids=["measured", "unknown"],
)
def test_max_time_saves_and_is_over_before_it(run_tiny, tmp_path, monkeypatch, every, steps, over):
    clock, evaluations = Clock(), Evaluations()
    monkeypatch.setattr("hooktrain.builtins.time_limit.time", clock)
    checkpoint = {"type": "full", "save_every_n_steps": every}
    settings = {"train_iters": 1000, "eval_interval": 500, "max_time": "400s", "checkpoint": checkpoint}
    trainer = run_tiny(clock, evaluations, **settings)
    assert (trainer.global_step, clock.now) == (steps, over)
    assert evaluations.steps == []
    assert re.search(facts("max_time", "of 400 s"), trainer.state.stop_reason)
    assert (tmp_path / "run" / "checkpoints" / f"step-{steps:08d}").is_dir()


def test_a_time_without_anything_to_save_warns(run_tiny):
    with pytest.warns(UserWarning, match=facts("max_time", "nothing is saved", "type full")):
        run_tiny(max_time="1h", train_iters=1)


@pytest.mark.filterwarnings("ignore:max_time")
@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"train_iters": "1k"}, "train_iters", 1000),
        ({"train_iters": "2.5M"}, "train_iters", 2_500_000),
        ({"max_tokens": "1e9"}, "max_tokens", 10**9),
        ({"max_tokens": "0.3B"}, "max_tokens", 300_000_000),
        ({"max_time": "2h"}, "max_time", 7200.0),
        ({"hang_timeout": "30m"}, "hang_timeout", 1800.0),
        ({"max_time": 90}, "max_time", 90.0),
        ({"gradient_clipping": "50%"}, "gradient_clipping", 0.5),
        ({"gradient_clipping": "1e-4"}, "gradient_clipping", 1e-4),
    ],
)
def test_numbers_as_people_write_them(run_tiny, given, field, value):
    found = getattr(run_tiny(exit_iteration=1, **given).recipe, field)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train_iters": "1.5"}, ["train_iters", "'1.5' (text)", "whole number"]),
        ({"train_iters": "1.0001k"}, ["train_iters", "whole number"]),
        ({"train_iters": "2h"}, ["train_iters", "whole number"]),
        ({"train_iters": "10%"}, ["train_iters", "whole number"]),
        ({"max_time": "2x"}, ["max_time", "'2x'", "90s, 30m, 2h or 1d"]),
        ({"max_time": "10%"}, ["max_time", "expected seconds"]),
        ({"gradient_clipping": "nan%"}, ["gradient_clipping", "a number"]),
        ({"eval_interval": 1.5}, ["eval_interval", "given 1.5", "fraction of an epoch", "epoch"]),
        ({"eval_interval": "epochs"}, ["eval_interval", "epochs", "epoch"]),
        ({"epochs": 0}, ["epochs", "given 0", "more than 0"]),
    ],
)
def test_what_means_nothing_is_refused(run_tiny, given, message):
    with pytest.raises(RecipeError) as caught:
        run_tiny(**given)
    assert re.search(facts(*message), str(caught.value))


def test_fractions_of_a_stream_are_refused(run_chat, chat_recipe):
    (source,) = chat_recipe["data"]["sources"]
    data = {**chat_recipe["data"], "sources": [{"name_or_path": source, "streaming": True}], "eval_sources": [source]}
    with pytest.raises(HooktrainError, match=facts("eval_interval", "0.5", "streaming", "number of steps")):
        run_chat(**{**chat_recipe, "data": data, "eval_interval": 0.5})
