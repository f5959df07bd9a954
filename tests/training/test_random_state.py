"""The random states of a run: saved when a save begins, and the same after it in a run that goes on and one resumed."""

from __future__ import annotations

import random
from pathlib import Path

import numpy
import pytest
import torch

from hooktrain import PluginInfo, hookimpl


def draw() -> tuple[float, float, float]:
    return random.random(), float(numpy.random.rand()), float(torch.rand(()))


class Trained:
    """Notes what each step could draw."""

    def __init__(self):
        self.drawn = []

    @hookimpl
    def on_step_end(self):
        before = torch.get_rng_state(), random.getstate(), numpy.random.get_state()
        self.drawn.append(draw())
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        numpy.random.set_state(before[2])


MAY_DRAW = PluginInfo(may_change=["random states"])


def drawing(hook: str, *, changes_gradients: bool = False, wrapper: bool = False):
    """A plugin that draws numbers in a hook, before and after its yield where it wraps it."""

    def draws(self):
        for _ in range(3):
            draw()

    def wraps(self):
        draws(self)
        result = yield
        draws(self)
        return result

    may_change = [] if changes_gradients else ["random states"]
    info = PluginInfo(name="draws", changes_gradients=changes_gradients, may_change=may_change)
    function = hookimpl(wrapper=True)(wraps) if wrapper else hookimpl(draws)
    return type("Draws", (), {hook: function, "hooktrain_plugin": info})()


class Keeps:
    """A plugin with state, which draws while it is collected and restored."""

    @hookimpl
    def collect_state(self):
        draw()
        return {"some": 1}

    @hookimpl
    def restore_state(self, state):
        draw()


EVENTS = [
    "on_train_start",
    "on_resume_start",
    "on_resume_end",
    "on_checkpoint_start",
    "on_checkpoint_end",
    "on_epoch_start",
    "on_epoch_end",
    "on_message",
    "on_evaluate_start",
    "on_evaluate_end",
    "on_log",
]
WRAPPED = ["run_train", "run_epoch", "save_checkpoint", "load_checkpoint", "on_train_start", "on_checkpoint_end"]
CASES = {
    **{name: lambda name=name: drawing(name) for name in EVENTS},
    **{f"{name}, wrapped": lambda name=name: drawing(name, wrapper=True) for name in WRAPPED},
    "on_train_start, changing": lambda: drawing("on_train_start", changes_gradients=True),
    "on_epoch_start, changing": lambda: drawing("on_epoch_start", changes_gradients=True),
    "on_checkpoint_end, changing": lambda: drawing("on_checkpoint_end", changes_gradients=True),
    "state": Keeps,
}


BACKGROUND = {name: make for name, make in CASES.items() if "checkpoint" in name or name in ("on_message", "state")}
DEFAULT = {
    *("on_train_start", "on_resume_end", "on_checkpoint_start", "on_checkpoint_end", "on_message", "on_evaluate_start"),
    *("save_checkpoint, wrapped", "on_train_start, changing", "on_checkpoint_end, changing", "state"),
    *("on_checkpoint_start, in the background", "on_message, in the background", "state, in the background"),
}
"""Each way in which the states are put back; the other cases are thorough."""
NAMED = {name: (make, False) for name, make in CASES.items()}
NAMED |= {f"{name}, in the background": (make, True) for name, make in BACKGROUND.items()}


@pytest.mark.parametrize(
    ("make", "background"),
    [
        pytest.param(*case, id=name, marks=[] if name in DEFAULT else [pytest.mark.thorough])
        for name, case in NAMED.items()
    ],
)
def test_a_resumed_run_draws_what_the_straight_one_does(run_tiny, tmp_path, make, background):
    """Two epochs of seven steps, the last of which is saved twice; resumed in an epoch's middle and at its end."""
    saved = {"type": "full", "save_every_n_steps": 1, "save_every_n_epochs": 1, "asynchronous": background}
    settings = {"epochs": 2, "model": {"dropout": 0.3}, "eval_interval": 3, "checkpoint": [saved]}
    whole = Trained()
    one = run_tiny(whole, make(), **settings)
    for at in (3, 7):
        left, path = Trained(), tmp_path / f"run/checkpoints/step-{at:08d}"
        again = {**settings, "run_dir": str(tmp_path / f"from-{at}")}
        other = run_tiny(left, make(), **again, trainer={"resume_from": path})
        assert left.drawn == whole.drawn[at:], at
        assert torch.equal(one.model.head.weight, other.model.head.weight)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("hook", ["on_train_start", "on_checkpoint_end"])
@pytest.mark.parametrize("wrapper", [False, True])
def test_what_an_observer_draws_around_the_training_does_not_count(run_tiny, hook, wrapper, background):
    saved = {"type": "full", "save_every_n_steps": 2, "asynchronous": background, "overwrite": True}
    alone, beside = Trained(), Trained()
    run_tiny(alone, checkpoint=saved)
    run_tiny(beside, drawing(hook, wrapper=wrapper), checkpoint=saved)
    assert alone.drawn == beside.drawn


def test_a_plugin_that_changes_gradients_keeps_what_it_draws_at_the_start(run_tiny):
    """Beside an observer, whose draws are put back although it is called after it."""
    alone, beside, observed = Trained(), Trained(), Trained()
    run_tiny(alone)
    run_tiny(beside, drawing("on_train_start", changes_gradients=True))
    run_tiny(
        observed,
        drawing("on_train_start", changes_gradients=True),
        type("Watches", (), {"on_train_start": hookimpl(lambda self: draw()), "hooktrain_plugin": MAY_DRAW})(),
    )
    assert alone.drawn[0] != beside.drawn[0]
    assert observed.drawn == beside.drawn


def test_a_save_from_a_hook_leaves_the_numbers_as_they_are(run_tiny, tmp_path):
    class Saves:
        @hookimpl
        def on_log(self, trainer):
            trainer.save(tmp_path / f"own-{trainer.global_step}", type="full")

    alone, beside = Trained(), Trained()
    run_tiny(alone)
    run_tiny(beside, Saves(), drawing("on_checkpoint_end"))
    assert alone.drawn == beside.drawn


def test_the_saved_state_is_that_of_the_beginning_of_the_save(run_tiny, tmp_path):
    class Notes:
        hooktrain_plugin = MAY_DRAW

        @hookimpl(trylast=True)
        def on_checkpoint_start(self):
            draw()
            self.state = torch.get_rng_state()

    notes = Notes()
    run_tiny(notes, Keeps(), checkpoint={"type": "full", "save_end_of_training": True})
    file = Path(tmp_path / "run/checkpoints/step-00000007/random-0.pt")
    assert torch.equal(torch.load(file, weights_only=True)["torch"], notes.state)
