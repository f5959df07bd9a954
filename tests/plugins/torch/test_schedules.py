"""Schedules as pure functions of the step, compared with torch's own where torch has one."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from hooktrain_torch.schedules import (
    TYPES,
    AnyScheduleConfig,
    ConstantConfig,
    CosineConfig,
    CosineMinConfig,
    InverseSqrtConfig,
    LinearConfig,
    PlateauConfig,
    PlateauSchedule,
    PolynomialConfig,
    RestartsConfig,
    Schedule,
    WSDConfig,
    make_schedule,
)
from hypothesis import given
from hypothesis import strategies as st

from hooktrain import HooktrainError, RecipeError
from hooktrain.testing import Recorder
from tests.facts import facts

BASE = 0.5


def optimizer_of(*rates: float) -> torch.optim.Optimizer:
    """One parameter group for each rate."""
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates])


def rates(config: Any, total: int, steps: int) -> list[float]:
    """The rate of each step from 0."""
    schedule = make_schedule(config, optimizer_of(BASE), total)
    found = []
    for _ in range(steps):
        found += schedule.get_last_lr()
        schedule.step()
    return found


def near(*values: float) -> Any:
    return pytest.approx([BASE * value for value in values], abs=1e-12)


ROOT = math.sqrt(0.5)


@pytest.mark.parametrize(
    ("config", "first", "warm", "middle", "last", "end"),
    [
        (ConstantConfig(), 1, 1, 1, 1, 1),
        (ConstantConfig(warmup_steps=4), 1 / 4, 1, 1, 1, 1),
        (LinearConfig(warmup_steps=4), 1 / 4, 1, 0.5, 1 / 16, 0),
        (LinearConfig(warmup_steps=4, min_lr_ratio=0.2), 1 / 4, 1, 0.6, 0.25, 0.2),
        (LinearConfig(warmup_steps=0), 1, 0.8, 0.4, 0.05, 0),
        (CosineConfig(warmup_steps=4), 1 / 4, 1, 0.5, (1 + math.cos(math.pi * 15 / 16)) / 2, 0),
        (
            CosineConfig(warmup_steps=4, min_lr_ratio=0.2),
            1 / 4,
            1,
            0.6,
            0.2 + 0.4 * (1 + math.cos(math.pi * 15 / 16)),
            0.2,
        ),
        (WSDConfig(warmup_steps=4, decay_steps=8), 1 / 4, 1, 1, 1 / 8, 0),
        (WSDConfig(warmup_steps=4, decay_steps=16, decay_shape="sqrt"), 1 / 4, 1, 1 - ROOT, 1 - math.sqrt(15 / 16), 0),
        (WSDConfig(warmup_steps=4, decay_steps=8, min_lr_ratio=0.2), 1 / 4, 1, 1, 0.3, 0.2),
        (WSDConfig(warmup_steps=4, decay_steps=0), 1 / 4, 1, 1, 1, 1),
    ],
    ids=str,
)
def test_values(config, first, warm, middle, last, end):
    """Steps 0, 4 (end of the warm-up), 12 (middle), 19 (last of the run), 20 (its end) and beyond, of 20."""
    found = rates(config, 20, 40)
    assert [found[step] for step in (0, 4, 12, 19)] == near(first, warm, middle, last)
    if config != WSDConfig(warmup_steps=4, decay_steps=0):
        assert [found[step] for step in (20, 25, 39)] == near(end, end, end)


def test_warmup_rises_in_equal_parts():
    assert rates(LinearConfig(warmup_steps=4), 20, 5) == near(0.25, 0.5, 0.75, 1, 1)


@pytest.mark.parametrize("kind", [ConstantConfig, LinearConfig, CosineConfig, WSDConfig])
def test_warmup_steps_win_over_the_ratio(kind):
    assert make_schedule(kind(warmup_steps=3, warmup_ratio=0.5), optimizer_of(1.0), 20).warmup_steps == 3
    assert make_schedule(kind(warmup_steps=0, warmup_ratio=0.5), optimizer_of(1.0), 20).warmup_steps == 0
    assert make_schedule(kind(warmup_ratio=0.26), optimizer_of(1.0), 10).warmup_steps == 3
    assert make_schedule(kind(warmup_ratio=0.0), optimizer_of(1.0), 10).warmup_steps == 0


def test_decay_steps_win_over_the_ratio():
    assert rates(WSDConfig(warmup_steps=0, decay_ratio=0.9, decay_steps=2), 10, 10) == near(*[1] * 9, 0.5)
    assert rates(WSDConfig(warmup_steps=0, decay_ratio=0.2), 10, 10) == near(*[1] * 9, 0.5)


@pytest.mark.parametrize("kind", [ConstantConfig, LinearConfig, CosineConfig, WSDConfig])
def test_a_run_shorter_than_its_warmup_only_rises(kind):
    found = rates(kind(warmup_steps=10), 4, 4)
    assert found == near(0.1, 0.2, 0.3, 0.4)


def test_decay_begins_after_the_warmup_however_long_it_is():
    assert rates(WSDConfig(warmup_steps=5, decay_steps=100), 10, 11) == near(
        0.2, 0.4, 0.6, 0.8, 1, 1, 0.8, 0.6, 0.4, 0.2, 0
    )


def test_every_group_keeps_its_own_rate():
    optimizer = optimizer_of(1.0, 0.1)
    schedule = make_schedule(LinearConfig(warmup_steps=2), optimizer, 4)
    assert schedule.get_last_lr() == [0.5, 0.05]
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.05]


ratios = st.floats(0, 1)
counts = st.none() | st.integers(0, 60)
warmups = {"warmup_ratio": ratios, "warmup_steps": counts}
configs = st.one_of(
    st.builds(ConstantConfig, **warmups),
    st.builds(LinearConfig, min_lr_ratio=ratios, **warmups),
    st.builds(CosineConfig, min_lr_ratio=ratios, **warmups),
    st.builds(
        WSDConfig,
        min_lr_ratio=ratios,
        decay_ratio=ratios,
        decay_steps=counts,
        decay_shape=st.sampled_from(["linear", "sqrt"]),
        **warmups,
    ),
)


@given(config=configs, total=st.integers(1, 50))
def test_the_rate_stays_between_the_least_and_the_full_one(config, total):
    schedule = make_schedule(config, optimizer_of(1.0), total)
    factors = [schedule.factor(step) for step in range(2 * total + 70)]
    warmup = schedule.warmup_steps
    assert all(0 <= factor <= 1 for factor in factors)
    assert factors[0] > 0 or warmup == 0
    assert factors[:warmup] == sorted(factors[:warmup])
    after = factors[warmup:]
    assert after == sorted(after, reverse=True)
    assert min(after) >= getattr(config, "min_lr_ratio", 1.0)


@given(config=configs, total=st.integers(1, 50), finished=st.integers(0, 60))
def test_a_new_schedule_continues_from_a_state(config, total, finished):
    one, other = optimizer_of(1.0, 0.1), optimizer_of(0.3, 0.3)
    old, new = (make_schedule(config, optimizer, total) for optimizer in (one, other))
    for _ in range(finished):
        old.step()
    new.load_state_dict(old.state_dict())
    for _ in range(3):
        assert new.get_last_lr() == old.get_last_lr() == [group["lr"] for group in other.param_groups]
        old.step()
        new.step()


# ---------------------------------------------------------------------------------------------- torch's own


def torch_rates(make: Any, steps: int) -> list[float]:
    optimizer = optimizer_of(BASE)
    scheduler, found = make(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def warm_then(after: Any, warmup: int) -> Any:
    return lambda step: (step + 1) / warmup if step < warmup else after(step)


@pytest.mark.parametrize(
    ("config", "formula"),
    [
        (ConstantConfig(warmup_steps=3), lambda step: 1.0),
        (LinearConfig(warmup_steps=3), lambda step: 1.0 - (step - 3) / 17),
        (CosineConfig(warmup_steps=3), lambda step: 0.5 * (1.0 + math.cos(math.pi * ((step - 3) / 17)))),
        (WSDConfig(warmup_steps=3, decay_steps=5), lambda step: 1.0 - max(0.0, (step - 15) / 5)),
    ],
    ids=["constant", "linear", "cosine", "wsd"],
)
def test_bit_equal_to_lambda_lr(config, formula):
    """LambdaLR with the textbook formula."""
    theirs = torch_rates(lambda o: torch.optim.lr_scheduler.LambdaLR(o, warm_then(formula, 3)), 20)
    assert rates(config, 20, 20) == theirs


lrs = torch.optim.lr_scheduler


@pytest.mark.parametrize(
    ("config", "make"),
    [
        (ConstantConfig(), lambda o: lrs.ConstantLR(o, factor=1.0)),
        (LinearConfig(warmup_steps=0, min_lr_ratio=0.1), lambda o: lrs.LinearLR(o, 1.0, 0.1, total_iters=20)),
        (CosineConfig(warmup_steps=0, min_lr_ratio=0.1), lambda o: lrs.CosineAnnealingLR(o, 20, eta_min=0.1 * BASE)),
        (LinearConfig(warmup_steps=0), lambda o: lrs.PolynomialLR(o, total_iters=20, power=1.0)),
    ],
    ids=["constant", "linear", "cosine", "polynomial"],
)
def test_equal_to_torchs_own_schedule(config, make):
    """Theirs multiply from step to step, so the last bits differ."""
    assert rates(config, 20, 21) == pytest.approx(torch_rates(make, 21), rel=1e-12, abs=1e-15)


# ---------------------------------------------------------------------------------------------- in a recipe


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "wsd"])
def test_a_recipe_selects_it_and_the_run_follows_it(run_tiny, kind):
    recorder = Recorder()
    trainer = run_tiny(recorder, scheduler={"type": kind, "warmup_steps": 2}, optimizer={"lr": 1.0})
    assert isinstance(trainer.scheduler, Schedule)
    assert [line["lr"] for line in recorder.metrics] == [trainer.scheduler.factor(step) for step in range(7)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"type": "linear", "warmup_ratio": 1.5}, ["scheduler.warmup_ratio", "given 1.5", "0 to 1"]),
        ({"type": "wsd", "decay_shape": "root"}, ["scheduler.decay_shape", "'root'", "linear, sqrt"]),
        ({"type": "cosine", "min_lr": 0.1}, ["scheduler.min_lr:", "'min_lr_ratio'"]),
        ({"type": "cosin"}, ["scheduler.type", "'cosin'", "'cosine'"]),
    ],
)
def test_what_is_wrong_in_a_recipe_is_said(run_tiny, given, message):
    with pytest.raises(RecipeError) as caught:
        run_tiny(scheduler=given)
    assert re.search(facts(*message), str(caught.value))


# --------------------------------------------------------------------------------------- transformers' schedules


@pytest.mark.parametrize(
    ("config", "name", "arguments"),
    [
        (LinearConfig(warmup_steps=3), "linear", {}),
        (CosineConfig(warmup_steps=3), "cosine", {}),
        (CosineMinConfig(warmup_steps=3, min_lr_ratio=0.1), "cosine_with_min_lr", {"min_lr_rate": 0.1}),
        (RestartsConfig(warmup_steps=3, num_cycles=3), "cosine_with_restarts", {"num_cycles": 3}),
        (PolynomialConfig(warmup_steps=3, power=2.0), "polynomial", {"power": 2.0, "lr_end": 0.0}),
        (PolynomialConfig(warmup_steps=3, min_lr_ratio=0.2), "polynomial", {"lr_end": 0.1}),
        (InverseSqrtConfig(warmup_steps=3), "inverse_sqrt", {}),
        (InverseSqrtConfig(warmup_steps=0, timescale=7), "inverse_sqrt", {"timescale": 7}),
        (InverseSqrtConfig(warmup_steps=0), "inverse_sqrt", {}),
        (ConstantConfig(warmup_steps=3), "constant_with_warmup", {}),
        (
            WSDConfig(warmup_steps=3, decay_steps=6, decay_shape="cosine", min_lr_ratio=0.1),
            "warmup_stable_decay",
            {"num_decay_steps": 6, "min_lr_ratio": 0.1},
        ),
    ],
    ids=str,
)
def test_equal_to_transformers_after_the_warmup(config, name, arguments):
    """Theirs begins the warm-up at a rate of 0, which trains nothing."""
    transformers = pytest.importorskip("transformers")

    def make(optimizer: torch.optim.Optimizer) -> Any:
        optimizer.defaults["lr"] = BASE
        return transformers.get_scheduler(name, optimizer, config.warmup_steps, 20, scheduler_specific_kwargs=arguments)

    warmup = config.warmup_steps
    assert rates(config, 20, 21)[warmup:] == pytest.approx(torch_rates(make, 21)[warmup:], rel=1e-12, abs=1e-15)


def test_every_name_of_transformers_is_a_schedule_here(run_tiny):
    """But for ``greedy``, which lowers the rate by the loss of each step."""
    transformers = pytest.importorskip("transformers")
    names = {each.value for each in transformers.SchedulerType} - {"greedy", *TYPES}
    assert names == {
        "constant_with_warmup",
        "cosine_warmup_with_min_lr",
        "reduce_lr_on_plateau",
        "warmup_stable_decay",
    }
    made = run_tiny(scheduler="warmup_stable_decay", train_iters=1).recipe.scheduler
    assert isinstance(made, WSDConfig)
    given = {"type": "cosine_warmup_with_min_lr", "min_lr_rate": 0.5}
    assert run_tiny(scheduler=given, train_iters=1).recipe.scheduler == CosineMinConfig(min_lr_ratio=0.5)


# ------------------------------------------------------------------------------------------------------- plateau


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_plateau_is_that_of_torch(mode):
    optimizer, theirs = optimizer_of(BASE), optimizer_of(BASE)
    settings: dict[str, Any] = {"mode": mode, "factor": 0.5, "patience": 1, "threshold": 0.01, "cooldown": 2}
    schedule = make_schedule(PlateauConfig(**settings), optimizer, 20)
    assert isinstance(schedule, PlateauSchedule)
    reference = lrs.ReduceLROnPlateau(theirs, **settings)
    values = [1.0, 0.9, 0.895, 0.899, 0.95, 0.95, 0.95, 0.95, 0.5, 0.499, 0.6, float("nan"), 0.6, 0.4, 0.7, 0.7, 0.7]
    for value in values if mode == "min" else [2.0 - value for value in values]:
        schedule.evaluated(value)
        schedule.step()
        reference.step(value)
        assert schedule.get_last_lr() == pytest.approx([theirs.param_groups[0]["lr"]])
    assert schedule.get_last_lr()[0] <= BASE / 8, "it has been reduced several times"


def test_a_run_reduces_its_rate_on_a_plateau_and_resumes_there(run_tiny, tmp_path):
    settings: dict[str, Any] = {
        "train_iters": 8,
        "eval_interval": 1,
        "optimizer": {"type": "sgd", "lr": 1e-6},  # too low for an improvement
        "scheduler": {"type": "plateau", "patience": 1, "factor": 0.5, "metric": "eval/held_out/loss"},
        "checkpoint": {"type": "full", "save_every_n_steps": 3},
    }

    one, two = Recorder(), Recorder()
    first = run_tiny(one, **settings)
    path = tmp_path / "run" / "checkpoints" / "step-00000003"
    second = run_tiny(two, trainer={"resume_from": path}, run_dir=str(tmp_path / "rest"), **settings)
    assert second.scheduler.state_dict() == first.scheduler.state_dict()
    assert [line["lr"] for line in one.metrics] == [1e-6] * 3 + [5e-7] * 2 + [2.5e-7] * 2 + [1.25e-7]
    assert [line["lr"] for line in two.metrics] == [line["lr"] for line in one.metrics][3:]


@pytest.mark.parametrize(
    ("given", "more", "message"),
    [
        ({"type": "plateau"}, {}, ["scheduler.type", "plateau", "before the end", "eval_interval"]),
        ({"type": "cosine_with_min_lr"}, {}, ["scheduler.min_lr_ratio", "missing"]),
        ({"type": "plateau", "metric": "eval/heldout/loss"}, {"eval_interval": 1}, ["metric", "eval/held_out/loss"]),
        ({"type": "torch"}, {}, ["scheduler.class_path", "missing"]),
        ({"type": "torch", "class_path": "OneCycle"}, {}, ["scheduler.class_path", "'OneCycleLR'"]),
        ({"type": "torch", "class_path": "os.path.join"}, {}, ["'os.path.join'", "no scheduler"]),
        ({"type": "torch", "class_path": "ReduceLROnPlateau"}, {}, ["needs a metric", "type: plateau"]),
        ({"type": "torch", "class_path": "StepLR"}, {}, ["StepLR refuses", "step_size", "scheduler.arguments"]),
    ],
)
def test_a_schedule_that_cannot_be_made_is_explained(run_tiny, given, more, message):
    with pytest.raises(HooktrainError) as caught:
        run_tiny(scheduler=given, **more)
    assert re.search(facts(*message), str(caught.value))


def test_any_class_of_torch_by_its_name_resumes(run_tiny, tmp_path):
    arguments = {"max_lr": 1.0, "total_steps": "total_steps", "cycle_momentum": False}
    settings: dict[str, Any] = {
        "train_iters": 6,
        "scheduler": {"type": "torch", "class_path": "OneCycleLR", "arguments": arguments},
        "checkpoint": {"type": "full", "save_every_n_steps": 3},
    }
    recorder, rest = Recorder(), Recorder()
    run_tiny(recorder, **settings)
    theirs = torch_rates(lambda o: lrs.OneCycleLR(o, max_lr=1.0, total_steps=6, cycle_momentum=False), 5)
    assert [line["lr"] for line in recorder.metrics][:5] == pytest.approx(theirs)
    path = tmp_path / "run" / "checkpoints" / "step-00000003"
    run_tiny(rest, trainer={"resume_from": path}, run_dir=str(tmp_path / "rest"), **settings)
    assert [line["lr"] for line in rest.metrics] == [line["lr"] for line in recorder.metrics][3:]
    assert AnyScheduleConfig in TYPES.values()
