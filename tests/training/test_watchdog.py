"""A run that makes no step within ``hang_timeout`` says where it is, and ends or warns; a step does nothing for it."""

from __future__ import annotations

import re
import signal
import threading
import warnings

import pytest

from hooktrain import HangError, PluginInfo, failure_of, hookimpl
from tests.facts import facts


def hangs(hook="on_step_end", wait=lambda: threading.Event().wait(1000)):
    """A plugin that waits in a hook at the second step until something ends that."""

    class Hangs:
        hooktrain_plugin = PluginInfo(on_error="warn")  # which does not keep a run that hangs
        met = False

    def hooked(self, trainer):
        if trainer.global_step == 2 and not self.met:
            self.met = True
            wait()

    setattr(Hangs, hook, hookimpl(hooked))
    return Hangs()


HANGS = {
    "sleep": lambda: threading.Event().wait(1000),
    "a lock": lambda: threading.Event().wait(),
    "a loop": lambda: [None for _ in iter(int, 1)],
}


@pytest.mark.parametrize("how", HANGS)
def test_a_hook_that_hangs_is_named_and_the_run_is_torn_down(run_tiny, capfd, how):
    torn_down = []

    class Other:
        @hookimpl
        def on_teardown(self):
            torn_down.append(True)

    before = threading.active_count(), signal.getsignal(signal.SIGURG)
    with pytest.raises(HangError) as caught:
        run_tiny(hangs(wait=HANGS[how]), Other(), hang_timeout=1.0)
    named = ("hang_timeout", "1 s", "plugin 'Hangs'", "on_step_end", "step 2", "rank 0")
    assert re.search(facts(*named), str(caught.value))
    assert failure_of(caught.value).where == "plugin 'Hangs', hook on_step_end, step 2, rank 0"
    assert torn_down
    assert re.search(facts(*named, "thread MainThread", "in hooked"), capfd.readouterr().err), "with all stacks"
    assert (threading.active_count(), signal.getsignal(signal.SIGURG)) == before


def test_with_warn_the_run_continues(run_tiny, capfd):
    go = threading.Event()

    class Releases:
        hooktrain_plugin = PluginInfo()

        @hookimpl
        def on_train_start(self, trainer):
            warn = trainer.host.warn
            trainer.host.warn = lambda text: (go.set() if "hang_timeout" in text else None, warn(text))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = run_tiny(Releases(), hangs(wait=go.wait), hang_timeout=1.0, on_hang="warn")
    assert trainer.global_step == 7
    (text,) = [str(each.message) for each in caught if "hang_timeout" in str(each.message)]
    assert re.search(facts("plugin 'Hangs'", "on_step_end", "step 2", "on_hang: warn"), text)
    assert "thread MainThread" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("hook", "what"), [("on_evaluate_start", "the evaluation"), ("on_checkpoint_start", "the save")]
)
def test_evaluations_and_saves_may_take_five_times_as_long(run_tiny, tmp_path, hook, what):
    saves = {"type": "full", "save_every_n_steps": 2}
    with pytest.raises(HangError, match=facts(what, "5 x 0.2 s", f"hook {hook}", "step 2")):
        run_tiny(hangs(hook), hang_timeout=0.2, eval_interval=2, checkpoint=saves)
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*")), "nothing is saved by half"


def test_what_takes_long_outside_of_the_run_is_no_hang(tiny_recipe):
    """As between the run and the end of a ``with`` block."""
    import hooktrain
    from hooktrain.testing import TinyPlugin

    with hooktrain.Trainer({**tiny_recipe, "hang_timeout": 0.2, "train_iters": 1}, plugins=[TinyPlugin()]) as trainer:
        trainer.run()
        threading.Event().wait(0.6)
    assert trainer.global_step == 1


def test_a_teardown_that_hangs_ends_and_the_others_are_torn_down(run_tiny):
    torn_down = []

    class Other:
        @hookimpl(trylast=True)
        def on_teardown(self):
            torn_down.append(True)

    class HangsAtTheEnd:
        @hookimpl(tryfirst=True)
        def on_teardown(self):
            threading.Event().wait(1000)

    with warnings.catch_warnings(), pytest.raises(HangError, match=facts("'HangsAtTheEnd'", "on_teardown")):
        warnings.simplefilter("ignore")
        run_tiny(HangsAtTheEnd(), Other(), hang_timeout=1.0)
    assert torn_down


def test_a_step_does_nothing_for_it(run_tiny):
    """The watchdog looks at the number of the step: the trainer tells it of evaluations, saves and the end alone."""

    class Looks:
        def __init__(self):
            self.entered = []

        @hookimpl
        def on_train_start(self, trainer):
            enter = trainer.watchdog.enter
            trainer.watchdog.enter = lambda activity: (self.entered.append(activity), enter(activity))

    short, long = Looks(), Looks()
    run_tiny(short, train_iters=2, data={"eval_rows": 0})
    run_tiny(long, train_iters=7, data={"eval_rows": 0})
    assert long.entered == short.entered == ["save", "step", "", "end"]


IN_C = {
    "waits in C code": "import torch.distributed, ctypes; ctypes.CDLL(None).pause()",
    "waits and swallows": "swallow()",
    "holds the lock of Python": "import ctypes; ctypes.PyDLL(None).sleep(1000)",
}
SOURCE = """
import ctypes, signal, time

def swallow():
    while True:
        try:
            threading.Event().wait(1000)
        except Exception:
            pass

@hookimpl
def on_step_end(trainer):
    if trainer.global_step == 2 and trainer.world.rank == trainer.world.world_size - 1:
        {}
"""


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("waits and swallows", ("plugin 'extra'", "hook on_step_end", "step 2", "rank 0")),
        pytest.param("holds the lock of Python", ("extra.py", "in on_step_end"), marks=pytest.mark.thorough),
    ],
)
def test_a_process_whose_thread_raises_nothing_is_ended(run_ranks, how, named):
    run = run_ranks(1, SOURCE.format(IN_C[how]), hang_timeout=0.5, checkpoint={"type": "full", "save_every_n_steps": 1})
    assert run.status == 1, run.output
    assert re.search(facts(*named), run.stderr), run.output
    assert (run.folder / "checkpoints" / "step-00000001").is_dir()


@pytest.mark.thorough
def test_of_several_ranks_the_one_that_hangs_is_blamed(run_ranks):
    run = run_ranks(2, SOURCE.format("time.sleep(1000)"), hang_timeout=1.0, micro_batch_size=1)
    assert run.status == 1, run.output
    first = next(line for line in run.output.splitlines() if line.startswith("hooktrain: rank"))
    assert re.search(facts("rank 1: ", "hang_timeout", "plugin 'extra'", "on_step_end", "step 2"), first), run.output
