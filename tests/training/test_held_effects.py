"""Plugins that say that they only observe are held to it in every run."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import warnings

import numpy
import pytest
import torch

from hooktrain import HooktrainWarning, PluginError, PluginInfo, hookimpl
from tests.facts import facts

QUIET = {"log_interval": 1000, "train_iters": 6}


def plugin_of(change, hook="on_step_end", step=0, name="cheats", **declared):
    """A plugin that makes a change in an event, from a step on."""

    def event(self, trainer):
        if trainer.global_step >= step:
            change(trainer)

    members = {hook: hookimpl(event), "hooktrain_plugin": PluginInfo(name=name, **declared)}
    return type(name, (), members)()


def quiet_plugins(count):
    """Plugins that do nothing in two events."""
    return [
        type(
            f"Quiet{n}",
            (),
            {
                "on_step_end": hookimpl(lambda self: None),
                "on_optimizer_step_start": hookimpl(lambda self: None),
                "hooktrain_plugin": PluginInfo(name=f"quiet-{n}"),
            },
        )()
        for n in range(count)
    ]


def weight(trainer):
    return trainer.model.head.weight


@torch.no_grad()
def writes(trainer):
    weight(trainer).add_(0.01)


def writes_past_the_counter(trainer):
    weight(trainer).data.add_(0.01)


def writes_by_numpy(trainer):
    weight(trainer).detach().numpy()[:] += 0.01


def replaces_data(trainer):
    weight(trainer).data = weight(trainer).data + 0.01


def negates(trainer):
    weight(trainer).data.neg_()


@torch.no_grad()
def writes_to_the_state(trainer):
    next(iter(trainer.optimizer.state.values()))["exp_avg"].add_(1)


def changes_the_rate(trainer):
    trainer.optimizer.param_groups[0]["lr"] *= 2


@pytest.fixture
def process_state(tmp_path):
    """Whatever a plugin of a test leaves changed in the process is put back."""
    folder, handler, stdout, dtype = (
        os.getcwd(),
        signal.getsignal(signal.SIGUSR2),
        sys.stdout,
        torch.get_default_dtype(),
    )
    yield
    os.chdir(folder)
    signal.signal(signal.SIGUSR2, handler)
    sys.stdout = stdout
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(True)


@pytest.mark.parametrize(
    ("change", "hook", "what"),
    [
        (writes, "on_step_end", "'head.weight'"),
        (lambda trainer: weight(trainer).grad.mul_(2), "on_optimizer_step_start", "gradients"),
        (lambda trainer: setattr(weight(trainer), "grad", None), "on_optimizer_step_start", "gradients"),
        (lambda trainer: trainer.optimizer.zero_grad(), "on_microbatch_end", "gradients"),
        (writes_to_the_state, "on_step_end", "optimizer's state"),
        (writes, "collect_metrics", "'head.weight'"),
        (lambda trainer: torch.set_grad_enabled(False), "on_step_end", "grad mode"),
        (lambda trainer: torch.set_default_dtype(torch.float64), "on_log", "default dtype"),
    ],
)
def test_what_version_counters_show_is_named_in_the_first_call(run_tiny, process_state, change, hook, what):
    with pytest.raises(PluginError, match=facts("plugin 'cheats'", f"hook {hook}", "rank 0", what)) as caught:
        run_tiny(plugin_of(change, hook, step=3), train_iters=8, log_interval=4)
    step = {"on_step_end": 3, "collect_metrics": 4, "on_log": 4}.get(hook, 3)
    assert f"step {step}," in str(caught.value)


@pytest.mark.parametrize("written", [True, False], ids=["written", "replaced"])
def test_a_batch_that_is_changed_is_named(run_tiny, written):
    class Shifts:
        @hookimpl
        def on_microbatch_start(self, trainer, batch):
            if trainer.global_step == 3 and written:
                batch["labels"][0, -1] = -100
            elif trainer.global_step == 3:
                batch["labels"] = batch["labels"].clone()

    with pytest.raises(PluginError, match=facts("plugin 'Shifts'", "on_microbatch_start", "step 3", "batch")):
        run_tiny(Shifts(), **QUIET)


UNSEEN = [
    (writes_past_the_counter, "'head.weight'"),
    (writes_by_numpy, "'head.weight'"),
    (replaces_data, "'head.weight'"),
    (negates, "'head.weight'"),
    (changes_the_rate, "learning rate"),
    (lambda trainer: random.random(), "Python's random"),
    (lambda trainer: numpy.random.rand(), "NumPy"),
    (lambda trainer: torch.rand(1), "torch"),
    (lambda trainer: trainer.model.eval(), "training"),
    (lambda trainer: os.chdir(tempfile.gettempdir()), "directory"),
    (lambda trainer: signal.signal(signal.SIGUSR2, signal.SIG_IGN), "signal handler"),
    (lambda trainer: setattr(sys, "stdout", sys.stderr), "sys.stdout"),
]


@pytest.mark.parametrize(
    ("change", "what"), UNSEEN, ids=[what.strip("'") + str(n) for n, (_, what) in enumerate(UNSEEN)]
)
def test_what_only_checked_steps_show_is_named_in_the_first_step(run_tiny, process_state, change, what):
    said = facts("plugin 'cheats'", "hook on_step_start", "step 0", "rank 0", what)
    with pytest.raises(PluginError, match=said):
        run_tiny(plugin_of(change, "on_step_start"), **QUIET)


def test_what_only_checked_steps_show_is_named_in_the_next_one(run_tiny):
    with pytest.raises(PluginError, match=facts("plugin 'cheats'", "on_step_end", "step 4", "'head.weight'")):
        run_tiny(
            plugin_of(writes_past_the_counter, step=2), **QUIET, checkpoint=[{"type": "full", "save_every_n_steps": 4}]
        )


def test_one_of_many_is_named_when_it_does_it_again(run_tiny):
    plugins = [*quiet_plugins(20), plugin_of(writes, step=3)]
    with (
        pytest.warns(HooktrainWarning, match=facts("on_step_end", "step 3", "'cheats'", "'head.weight'", "one of")),
        pytest.raises(PluginError, match=facts("plugin 'cheats'", "on_step_end", "step 4", "'head.weight'")),
    ):
        run_tiny(*plugins, **QUIET)


def test_one_of_many_that_does_it_once_stops_the_run_before_it_is_saved(run_tiny, tmp_path):
    def once(trainer):
        if trainer.global_step == 3:
            writes(trainer)

    plugins = [*quiet_plugins(20), plugin_of(once)]
    saves = {"checkpoint": [{"type": "full", "save_every_n_steps": 5, "output_dir": str(tmp_path / "saved")}]}
    with (
        pytest.warns(HooktrainWarning, match="one of"),
        pytest.raises(PluginError, match=facts("one of", "'cheats'", "on_step_end", "step 3", "'head.weight'")),
    ):
        run_tiny(*plugins, **QUIET, **saves)
    assert not list((tmp_path / "saved").glob("step-*"))


def test_only_rank_one_cheats_and_is_named(run_ranks):
    source = """
import hooktrain, torch


@hooktrain.hookimpl
def on_step_end(trainer):
    if trainer.world.rank == 1 and trainer.global_step == 2:
        with torch.no_grad():
            trainer.model.head.weight.add_(0.01)
"""
    run = run_ranks(2, source, **QUIET)
    assert run.status != 0
    for fact in ("on_step_end", "step 2", "rank 1", "head.weight"):
        assert fact in run.stderr, run.stderr


@pytest.mark.parametrize("policy", ["warn", "disable"])
def test_what_leaves_the_training_alone_follows_on_error(run_tiny, process_state, policy):
    calls = []

    def moves(trainer):
        calls.append(trainer.global_step)
        os.chdir(tempfile.gettempdir() if len(calls) % 2 else "/")

    with pytest.warns(HooktrainWarning, match=facts("'cheats'", "on_step_end", "current directory")):
        run_tiny(plugin_of(moves, on_error=policy), **QUIET)
    assert calls == ([1, 2, 3, 4, 5, 6] if policy == "warn" else [1])


def test_what_changes_the_training_stops_whatever_on_error_says(run_tiny):
    with pytest.raises(PluginError, match=facts("'cheats'", "on_step_end")):
        run_tiny(plugin_of(writes, on_error="disable"), **QUIET)


@pytest.mark.parametrize(
    ("change", "declared"),
    [
        (writes, {"changes_gradients": True}),
        (writes_past_the_counter, {"may_change": ["parameters"]}),
        (lambda trainer: signal.signal(signal.SIGUSR2, signal.SIG_IGN), {"may_change": "signal handlers"}),
        (lambda trainer: random.random(), {"may_change": "*"}),
    ],
)
def test_what_is_declared_is_not_held(run_tiny, process_state, change, declared):
    trainer = run_tiny(plugin_of(change, **declared), *quiet_plugins(2), **QUIET)
    assert trainer.global_step == 6


def test_an_effect_that_is_none_is_refused_with_a_suggestion():
    with pytest.raises(ValueError, match=facts("'signal handler'", "did you mean 'signal handlers'")):
        PluginInfo(may_change="signal handler")


def test_one_that_trains_in_between_is_nobodys_fault(run_tiny):
    """The plugins before and after one that declares changes_gradients are checked apart from it."""
    quiet = quiet_plugins(8)
    trains = plugin_of(writes, name="trains", changes_gradients=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", HooktrainWarning)
        trainer = run_tiny(*quiet[:4], trains, *quiet[4:], **QUIET)
    assert trainer.global_step == 6


def test_held_plugins_leave_the_losses_as_they_are(tiny_recipe, run_tiny, tmp_path):
    found = []
    for n, plugins in enumerate(([], quiet_plugins(20))):
        run_tiny(*plugins, run_dir=str(tmp_path / str(n)), train_iters=6, log_interval=1, model={"dropout": 0.5})
        lines = [json.loads(line) for line in (tmp_path / str(n) / "metrics.jsonl").read_text().splitlines()]
        found.append([(line["step"], line["loss"]) for line in lines])
    assert found[0] == found[1]
