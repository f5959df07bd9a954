"""Schedules as pure functions of the step, compared with torch's own where torch has one."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from hooktrain_torch.schedules import (
    ConstantConfig,
    CosineConfig,
    LinearConfig,
    Schedule,
    WSDConfig,
    make_schedule,
)
from hypothesis import given
from hypothesis import strategies as st

from hooktrain import RecipeError
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
