"""Plugins that say that they only observe are held to it in every run."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import signal
import sys
import tempfile
import threading
import warnings

import numpy
import pytest
import torch

from hooktrain import HooktrainWarning, PluginError, PluginInfo, StepOutput, hookimpl
from hooktrain.training import run_snapshots
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


def test_what_the_sample_does_not_hold_is_named_within_a_rotation(run_tiny, monkeypatch):
    """With one of three parameters in the sample of each checked step, and a save in each step."""
    monkeypatch.setattr(run_snapshots, "_SAMPLED_PARAMETERS", 1)
    with pytest.raises(PluginError, match=facts("plugin 'cheats'", "on_step_end", "'head.weight'")) as caught:
        run_tiny(plugin_of(writes_by_numpy), **QUIET, checkpoint=[{"type": "full", "save_every_n_steps": 1}])
    assert re.search(r"step [123],", str(caught.value))


def test_an_honest_loop_hook_is_nobodys_change(run_tiny):
    def run_step(self, trainer, batches):
        total = sum(trainer.microbatch(batch).total for batch in batches)
        update = trainer.optimizer_step()
        return StepOutput(total, update.grad_norm, update.stepped)

    with no_warnings():
        steps = makes("steps", {"run_step": run_step})
        assert run_tiny(steps, *quiet_plugins(2), train_iters=6, log_interval=1).global_step == 6


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


# ------------------------------------------------------------------------------------------------- events within events


def speaks(trainer):
    trainer.say("a step")


def makes(name, body, **declared):
    """A plugin with the hooks that a function defines."""
    members = {key: hookimpl(value) for key, value in body.items()}
    return type(name, (), {**members, "hooktrain_plugin": PluginInfo(name=name, **declared)})()


@contextlib.contextmanager
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error", HooktrainWarning)
        yield


def test_what_a_plugin_draws_while_another_one_speaks_is_its_own(run_tiny):
    draws = makes("draws", {"on_message": lambda self: random.random()}, may_change="random states")
    with no_warnings():
        assert run_tiny(plugin_of(speaks), draws, **QUIET).global_step == 6


@pytest.mark.parametrize("wrapper", [False, True])
@pytest.mark.parametrize("speaking", ["on_step_end", "collect_metrics"])
def test_one_that_trains_while_another_one_speaks_is_nobodys_fault(run_tiny, wrapper, speaking):
    def on_message(self, trainer):
        writes(trainer)

    def wraps(self, trainer):
        writes(trainer)
        return (yield)

    trains = type(
        "Trains",
        (),
        {
            "on_message": hookimpl(wrapper=True)(wraps) if wrapper else hookimpl(on_message),
            "hooktrain_plugin": PluginInfo(changes_gradients=True),
        },
    )()
    with no_warnings():
        trainer = run_tiny(plugin_of(speaks, hook=speaking), *quiet_plugins(2), trains, train_iters=6, log_interval=2)
    assert trainer.global_step == 6


@pytest.mark.parametrize("step", [0, 3], ids=["checked", "not checked"])
@pytest.mark.parametrize("outer", ["ends the error", "may fail", "stops"])
def test_one_that_cheats_while_another_one_speaks_is_named(run_tiny, outer, step):
    def suppresses(trainer):
        with contextlib.suppress(PluginError):
            speaks(trainer)

    speaker = plugin_of(
        suppresses if outer == "ends the error" else speaks,
        name="speaker",
        on_error="warn" if outer == "may fail" else "stop",
    )

    def on_message(self, trainer):
        if trainer.global_step > step:
            writes(trainer)

    said = facts("plugin 'cheats'", "hook on_message", f"step {step + 1}", "'head.weight'")
    with warnings.catch_warnings(), pytest.raises(PluginError, match=said):
        warnings.simplefilter("ignore", HooktrainWarning)  # that the speaker has failed
        run_tiny(speaker, makes("cheats", {"on_message": on_message}), **QUIET)


def test_one_that_speaks_and_cheats_is_named_whatever_the_other_one_may_change(run_tiny):
    def both(trainer):
        speaks(trainer)
        writes(trainer)

    draws = makes("draws", {"on_message": lambda self: random.random()}, may_change="random states")
    with pytest.raises(PluginError, match=facts("plugin 'cheats'", "on_step_end", "step 1", "'head.weight'")):
        run_tiny(plugin_of(both), draws, **QUIET)


@pytest.mark.parametrize("declared", [{"may_change": "random states"}, {"changes_gradients": True}])
def test_what_an_event_drew_before_it_raised_is_its_own(run_tiny, declared):
    def suppresses(trainer):
        with contextlib.suppress(ZeroDivisionError):
            speaks(trainer)

    def on_message(self, message):
        if message == "a step":  # and not what the console says
            1 / int(random.random())

    raises = makes("raises", {"on_message": on_message}, **declared)
    with no_warnings():
        assert run_tiny(plugin_of(suppresses), raises, **QUIET).global_step == 6


def test_one_that_cheats_and_raises_within_another_event_stops_the_run(run_tiny):
    def suppresses(trainer):
        with contextlib.suppress(ZeroDivisionError):
            speaks(trainer)

    def on_message(self, trainer):
        writes(trainer)
        raise ZeroDivisionError

    with pytest.raises(PluginError, match=facts("plugin 'cheats'", "on_message", "step 1", "'head.weight'")):
        run_tiny(plugin_of(suppresses, name="outer"), makes("cheats", {"on_message": on_message}), **QUIET)


class Averages:
    """Evaluates and saves other weights than it trains, as an average of them, and draws numbers for it."""

    hooktrain_plugin = PluginInfo(changes_gradients=True)

    @hookimpl(wrapper=True)
    def run_evaluate(self, trainer):
        return (yield from self.swapped(trainer))

    @hookimpl(wrapper=True)
    def save_checkpoint(self, trainer):
        return (yield from self.swapped(trainer))

    def swapped(self, trainer):
        kept = weight(trainer).detach().clone()
        with torch.no_grad():
            weight(trainer).mul_(0.5)
        result = yield
        with torch.no_grad():
            weight(trainer).copy_(kept)
        random.random()
        return result


@pytest.mark.parametrize("step", [0, 3], ids=["checked", "not checked"])
@pytest.mark.parametrize("requested", ["evaluate", "save"])
def test_an_evaluation_or_a_save_within_an_event_is_no_change_of_it(run_tiny, tmp_path, requested, step):
    def requests(trainer):
        if requested == "evaluate":
            trainer.evaluate()
        else:
            trainer.save(tmp_path / f"own-{trainer.global_step}", type="full")

    with no_warnings():
        trainer = run_tiny(plugin_of(requests, step=step), Averages(), *quiet_plugins(2), **QUIET)
    assert trainer.global_step == 6


def test_one_that_steps_the_optimizer_in_an_event_is_named(run_tiny):
    def trains(trainer):
        trainer.optimizer.step()

    with pytest.raises(PluginError, match=facts("plugin 'cheats'", "on_optimizer_step_start", "step 3")):
        run_tiny(plugin_of(trains, "on_optimizer_step_start", step=3), **QUIET)


def test_an_event_of_another_thread_is_not_compared(run_tiny):
    """One that a plugin's thread calls lasts while the run trains."""

    class Reports:
        def __init__(self):
            self.trained = threading.Event()
            self.thread, self.errors = None, []

        @hookimpl
        def on_step_start(self, trainer):
            self.trained.clear()
            self.thread = threading.Thread(target=self.report, args=(trainer,))
            self.thread.start()

        def report(self, trainer):
            try:
                speaks(trainer)
            except PluginError as problem:
                self.errors.append(problem)

        @hookimpl
        def on_step_end(self):
            self.trained.set()
            self.thread.join()

        @hookimpl
        def on_message(self):
            if threading.current_thread() is self.thread:
                assert self.trained.wait(30)

    reports = Reports()
    with no_warnings():
        run_tiny(reports, **QUIET)
    assert not reports.errors


# ------------------------------------------------------------------------------------------------------------- wrappers


def wraps(change=lambda trainer: None, after=lambda trainer: None, hook="run_step", **declared):
    """A wrapper that does something before its yield and after it."""

    def wrapper(self, trainer):
        change(trainer)
        result = yield
        after(trainer)
        return result

    info = PluginInfo(name="cheats", **declared)
    return type("Wraps", (), {hook: hookimpl(wrapper=True)(wrapper), "hooktrain_plugin": info})()


def moves(trainer):
    os.chdir(tempfile.gettempdir())


@pytest.mark.parametrize(
    ("change", "what"),
    [(writes, "'head.weight'"), (lambda trainer: random.random(), "Python's random"), (moves, "current directory")],
)
@pytest.mark.parametrize("part", ["change", "after"])
@pytest.mark.parametrize("hook", ["run_step", "on_step_end"])
def test_a_wrapper_of_one_that_only_observes_is_named(run_tiny, process_state, change, what, part, hook):
    with pytest.raises(PluginError, match=facts("plugin 'cheats'", f"hook {hook}", "only_observes", what)):
        run_tiny(wraps(**{part: change}, hook=hook, only_observes=True), **QUIET)


def test_a_wrapper_may_train_unless_it_says_that_it_only_observes(run_tiny):
    assert run_tiny(wraps(writes), **QUIET).global_step == 6


def test_a_wrapper_may_evaluate_other_weights_and_put_its_own_back(run_tiny):
    def halves(trainer):
        with torch.no_grad():
            weight(trainer).mul_(0.5)

    def doubles(trainer):
        with torch.no_grad():
            weight(trainer).mul_(2)

    averages = wraps(halves, doubles, hook="run_evaluate", only_observes=True)
    with no_warnings():
        trainer = run_tiny(averages, plugin_of(lambda trainer: trainer.evaluate(), name="asks"), **QUIET)
    assert trainer.global_step == 6


def test_a_wrapper_may_put_back_what_it_changes_for_the_time_of_a_step(run_tiny):
    printed, before = io.StringIO(), []

    def redirects(trainer):
        before.append(sys.stdout)
        sys.stdout = printed

    def restores(trainer):
        sys.stdout = before.pop()

    with no_warnings():
        trainer = run_tiny(wraps(redirects, restores, only_observes=True), *quiet_plugins(2), **QUIET)
    assert trainer.global_step == 6
