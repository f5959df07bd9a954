"""A plugin that only implements and measures may fail without ending the run, alike on all ranks; nothing else may."""

from __future__ import annotations

import re
import warnings

import pytest

from hooktrain import HooktrainWarning, PluginError, PluginInfo, failure_of, hookimpl
from tests.facts import facts

pytestmark = pytest.mark.filterwarnings("ignore::hooktrain.HooktrainWarning")


class Tracker:
    """Fails at the second step's line, as one does whose server has gone."""

    hooktrain_plugin = PluginInfo(on_error="disable")

    def __init__(self):
        self.seen, self.closed = [], False

    @hookimpl
    def on_log(self, trainer, metrics):
        self.seen.append(metrics["step"])
        if metrics["step"] == 2:
            raise ConnectionError("the server\nhas gone")

    @hookimpl
    def on_train_end(self):
        self.seen.append("end")

    @hookimpl
    def collect_metrics(self):
        return {"tracker/lines": float(len(self.seen))}

    @hookimpl
    def collect_state(self):
        return {"seen": list(self.seen)}

    @hookimpl
    def on_teardown(self):
        self.closed = True


class Forgets(Tracker):
    """Cannot say what it knows when the run is saved."""

    hooktrain_plugin = PluginInfo(name="Tracker", on_error="disable")

    @hookimpl
    def on_log(self, metrics):
        self.seen.append(metrics["step"])

    @hookimpl
    def collect_state(self):
        raise KeyError("seen")

    @hookimpl
    def restore_state(self, state):
        raise AssertionError(state)


def test_a_resume_says_which_plugin_could_not_give_its_state(run_tiny, tmp_path):
    run_tiny(Forgets(), train_iters=4, checkpoint={"type": "full", "save_every_n_steps": 2})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resume = {"resume_from": tmp_path / "run" / "checkpoints" / "step-00000002"}
        run_tiny(Forgets(), train_iters=4, trainer=resume, checkpoint={"type": "full"})
    assert [text for text in said(caught) if re.search(facts("checkpoint: ", "'Tracker'", "collect_state"), text)]


def said(caught):
    return [str(each.message) for each in caught if issubclass(each.category, HooktrainWarning)]


def test_disabled_plugins_are_left_out_and_keep_their_state_and_their_end(run_tiny):
    tracker = Tracker()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = run_tiny(tracker, train_iters=4, checkpoint={"type": "full", "save_end_of_training": True})
    assert tracker.seen == [1, 2] and tracker.closed
    assert [("tracker/lines" in line) for line in trainer.history] == [True, True, False, False]
    (text,) = said(caught)
    assert text.startswith(
        "plugin 'Tracker' (tests), hook on_log, step 2, rank 0: ConnectionError: the server has gone"
    )
    record = trainer.host.records["Tracker"]
    assert record.state == "disabled" and re.search(facts("step 3", "all ranks"), record.reason)
    assert trainer.collect_states()["Tracker"] == {"seen": [1, 2]}
    assert "Tracker" in [each["name"] for each in trainer.host.manifest()]


def test_a_resumed_run_gives_a_disabled_plugin_another_chance(run_tiny):
    saving = {"checkpoint": {"type": "full", "save_every_n_steps": 1, "auto_resume": True}}
    run_tiny(Tracker(), exit_iteration=3, train_iters=6, **saving)
    again = Tracker()
    run_tiny(again, train_iters=6, **saving)
    assert again.seen == [4, 5, 6, "end"]


def test_with_warn_it_goes_on_being_called_and_failures_are_counted(run_tiny):
    class Fails:
        hooktrain_plugin = PluginInfo(on_error="warn")
        calls = 0

        @hookimpl
        def on_step_end(self):
            Fails.calls += 1
            raise ValueError("no luck")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_tiny(Fails(), train_iters=5)
    assert Fails.calls == 5
    first, last = said(caught)
    assert first.startswith("plugin 'Fails' (tests), hook on_step_end, step 1, rank 0: ValueError: no luck")
    assert re.search(facts("'Fails' (tests)", "5 times", "on_step_end 5"), last)


class Raises:
    """Raises in one hook, having said that it may."""

    def __init__(self, hook, how=(), **info):
        def raising(self, trainer):
            if not how:
                raise ValueError("no luck")
            yield
            raise ValueError("no luck")

        plain = raising if how else (lambda self, trainer: (_ for _ in ()).throw(ValueError("no luck")))
        members = {hook: hookimpl(**dict(how))(plain), "hooktrain_plugin": PluginInfo(**info)}
        self.plugin = type("Raises", (), members)()


@pytest.mark.parametrize("hook", ["run_backward", "run_optimizer_step", "run_evaluate"])
def test_what_does_the_work_stops_the_run_whatever_it_declares(run_tiny, hook):
    with pytest.raises(ValueError, match="no luck"):
        run_tiny(Raises(hook, on_error="warn").plugin, eval_at_start=True)


def test_a_wrapper_stops_the_run_whatever_it_declares(run_tiny):
    with pytest.raises(ValueError, match="no luck"):
        run_tiny(Raises("on_log", {"wrapper": True}.items(), on_error="disable").plugin)


def test_without_a_word_a_failure_stops_the_run(run_tiny):
    with pytest.raises(ValueError, match="no luck") as caught:
        run_tiny(Raises("on_step_end").plugin)
    assert failure_of(caught.value).where == "plugin 'Raises', hook on_step_end, step 1, rank 0"


def test_the_recipe_has_the_last_word(run_tiny):
    run_tiny(Raises("on_step_end").plugin, plugins={"on_error": {"Raises": "disable"}})
    with pytest.raises(ValueError, match="no luck"):
        run_tiny(Raises("on_step_end", on_error="warn").plugin, plugins={"on_error": {"Raises": "stop"}})


@pytest.mark.parametrize(
    ("policies", "texts"),
    [
        ({"Rises": "warn"}, ["plugins.on_error: ", "'Rises'", "'Raises'"]),
        ({"Raises": "warm"}, ["plugins.on_error.Raises: ", "'warm'", "'warn'", "stop", "disable"]),
    ],
)
def test_a_policy_that_there_is_not_is_refused(run_tiny, policies, texts):
    with pytest.raises(PluginError, match=facts(*texts)):
        run_tiny(Raises("on_step_end").plugin, plugins={"on_error": policies})


def test_what_changes_gradients_cannot_be_gone_without(run_tiny):
    plugin = Raises("on_step_end", changes_gradients=True).plugin
    with pytest.raises(PluginError, match=facts("plugins.on_error.Raises: ", "'warn'", "gradients")):
        run_tiny(plugin, plugins={"on_error": {"Raises": "warn"}})


class Asks:
    """Has another plugin disabled, as one that watches over others does."""

    def __init__(self, name):
        self.name = name

    @hookimpl
    def on_step_start(self, trainer):
        if trainer.global_step == 1:
            trainer.request_disable(self.name)


def test_a_plugin_may_have_another_left_out(run_tiny):
    tracker = Tracker()
    trainer = run_tiny(Asks("Tracker"), tracker, train_iters=4)
    assert tracker.seen == [1] and tracker.closed, "after the step in which it was asked for, before its line"
    assert re.search(facts("step 2", "all ranks"), trainer.host.records["Tracker"].reason)


def test_leaving_out_what_is_not_there_or_changes_gradients_is_refused_at_once(run_tiny):
    with pytest.raises(PluginError, match=facts("request_disable: ", "'Tracer'", "'Tracker'", "Asks")):
        run_tiny(Asks("Tracer"), Tracker())
    with pytest.raises(PluginError, match=facts("request_disable: ", "'Raises' (tests)", "gradients")):
        run_tiny(Asks("Raises"), Raises("on_epoch_end", changes_gradients=True).plugin)


ONE_RANK = """
import os, hooktrain

hooktrain_plugin = hooktrain.PluginInfo(on_error="disable")

@hookimpl
def on_step_end(trainer):
    note(step=trainer.global_step)
    if os.environ["RANK"] == "1" and trainer.global_step == 2:
        raise ConnectionError("the server has gone")

@hookimpl
def on_teardown(trainer):
    note(state=trainer.host.records["extra"].state, reason=trainer.host.records["extra"].reason)
"""


def test_all_ranks_leave_it_out_after_the_same_step(run_ranks, rank_notes):
    run = run_ranks(2, ONE_RANK, train_iters=5)
    assert run.status == 0, run.output
    warned = [line for line in run.output.splitlines() if "the server has gone" in line]
    assert len(warned) == 1 and warned[0].startswith("hooktrain: warning of rank 1: plugin 'extra'"), run.output
    ends = []
    for rank in (0, 1):
        *steps, end = rank_notes(rank)
        assert [each["step"] for each in steps] == [1, 2]
        ends.append(end)
    assert ends[0] == ends[1]
    assert ends[0]["state"] == "disabled" and re.search(facts("step 2", "all ranks"), ends[0]["reason"])
