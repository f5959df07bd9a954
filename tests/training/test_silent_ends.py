"""No run ends without a word: whatever a plugin raises is named with plugin, hook, step and rank, and the status tells."""

from __future__ import annotations

import re

import pytest

from hooktrain import HooktrainError, PluginInfo, failure_of, hookimpl
from tests.facts import facts

PANIC = "type('PanicException', (BaseException,), {'__module__': 'pyo3_runtime'})('index out of bounds')"
UNSHOWN = "type('Unshown', (Exception,), {'__str__': lambda self: 1 / 0})()"
RAISED = {
    "BrokenPipeError": "BrokenPipeError(32, 'Broken pipe')",
    "Exit": "__import__('click').exceptions.Exit(0)",
    "PanicException": PANIC,
    "EOFError": "EOFError('no more data')",
    "CancelledError": "__import__('asyncio').CancelledError()",
    "GeneratorExit": "GeneratorExit()",
    "StopIteration": "StopIteration(3)",
    "Abort": "__import__('click').Abort()",
    "UsageError": "__import__('click').UsageError('no such option')",
    "Unshown": UNSHOWN,
}
"""What click takes for its own, what is no ``Exception``, and what a loop takes for its end."""
DEFAULT = ("BrokenPipeError", "Exit", "PanicException")


@pytest.mark.parametrize("name", [n if n in DEFAULT else pytest.param(n, marks=pytest.mark.thorough) for n in RAISED])
def test_what_a_hook_raises_is_named(run_ranks, name):
    source = f"@hookimpl\ndef on_step_end(trainer):\n    if trainer.global_step == 2: raise {RAISED[name]}\n"
    run = run_ranks(1, source)
    assert run.status == 1
    last = run.stderr.splitlines()[-1]
    assert re.search(facts("plugin 'extra'", "on_step_end", "step 2", "rank 0", name), last), run.output


def test_what_a_check_raises_is_named(run_ranks):
    run = run_ranks(1, "@hookimpl\ndef check_recipe():\n    raise BrokenPipeError(32, 'Broken pipe')\n")
    assert run.status == 1
    assert re.search(facts("plugin 'extra'", "check_recipe", "rank 0", "BrokenPipeError"), run.stderr.splitlines()[-1])


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["BrokenPipeError", "PanicException"])
def test_a_rank_that_raises_is_named(run_ranks, name):
    source = f"@hookimpl\ndef on_step_end(trainer):\n    if trainer.world.rank == 1: raise {RAISED[name]}\n"
    run = run_ranks(2, source, micro_batch_size=1)
    assert run.status == 1
    first = next(line for line in run.output.splitlines() if line.startswith("hooktrain: rank"))
    assert re.search(facts("rank 1: ", "plugin 'extra'", "on_step_end", "step 1", name), first), run.output


def test_plugins_are_listed_whatever_the_import_of_one_raises(run_cli, installed):
    installed("a-panics", f"raise {PANIC}")
    installed("b-cancels", "import asyncio\nraise asyncio.CancelledError")
    installed("c-works", "import hooktrain\n@hooktrain.hookimpl\ndef on_log(): pass\n")
    run = run_cli("plugins", env={"PYTHONPATH": ""} | _path())
    assert run.status == 0, run.output
    assert re.search(
        facts("a-panics", "PanicException: index out of bounds", "b-cancels", "CancelledError"), run.output
    )
    assert re.search(r"c-works.*active", run.output)


def _path() -> dict[str, str]:
    import os
    import sys

    return {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry.endswith("site"))}


def test_a_run_that_names_a_plugin_which_panics_is_refused_in_one_sentence(run_ranks):
    run = run_ranks(1, f"raise {PANIC}")
    assert run.status == 1
    assert "Traceback" not in run.stderr
    assert re.search(facts("'extra'", "cannot be imported", "PanicException: index out of bounds"), run.stderr)


class Fails:
    """Raises what is no ``Exception`` after the second step."""

    def __init__(self, problem: BaseException) -> None:
        self.problem = problem

    @hookimpl
    def on_step_end(self, trainer):
        if trainer.global_step == 2:
            raise self.problem


class Swallows:
    """Takes every error of the training for its end."""

    @hookimpl(wrapper=True)
    def run_train(self, trainer):
        try:
            return (yield)
        except Exception:
            return trainer.state


@pytest.mark.filterwarnings("ignore::hooktrain.HooktrainWarning")
def test_the_error_policy_covers_what_is_no_exception(run_tiny):
    class Tolerant(Fails):
        hooktrain_plugin = PluginInfo(on_error="disable")

    trainer = run_tiny(Tolerant(type("PanicException", (BaseException,), {})("out of bounds")))
    assert trainer.global_step == 7
    assert trainer.host.records["Tolerant"].state == "disabled"


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), SystemExit(0)])
def test_the_error_policy_lets_nobody_keep_a_run_that_is_to_end(run_tiny, problem):
    class Tolerant(Fails):
        hooktrain_plugin = PluginInfo(on_error="warn")

    with pytest.raises(type(problem)):
        run_tiny(Tolerant(problem))


def test_a_wrapper_that_swallows_an_error_ends_no_run_as_a_success(run_tiny):
    with pytest.raises(HooktrainError) as caught:
        run_tiny(Swallows(), Fails(KeyError("x")))
    where = ("plugin 'Fails'", "on_step_end", "step 2", "rank 0", "KeyError: 'x'")
    assert re.search(facts("hook run_train", "step 2 of 7", "'Swallows'", "request_stop", *where), str(caught.value))
    assert failure_of(caught.value).where == "plugin 'Swallows', hook run_train, step 2, rank 0"


def test_an_epoch_that_ends_early_without_a_reason_is_an_error(run_tiny):
    class Swallows:
        @hookimpl(wrapper=True)
        def run_epoch(self):
            try:
                return (yield)
            except KeyError:
                return 2

    with pytest.raises(HooktrainError) as caught:
        run_tiny(Swallows(), Fails(KeyError("x")), epochs=2)
    named = ("hook run_epoch", "4 of 13 sequences of epoch 0", "'Swallows'", "plugin 'Fails'", "KeyError: 'x'")
    assert re.search(facts(*named), str(caught.value))


def test_a_loop_that_leaves_out_steps_gives_a_reason(run_tiny):
    class Half:
        reason = ""

        @hookimpl
        def run_train(self, trainer):
            for batches in trainer.train_batches:
                trainer.step(batches)
                if trainer.global_step == 3:
                    break
            if self.reason:
                trainer.request_stop(self.reason)
            return trainer.state

    half = Half()
    with pytest.raises(HooktrainError, match=facts("hook run_train", "step 3 of 7", "'Half'", "request_stop")):
        run_tiny(half)
    half.reason = "three are enough"
    assert run_tiny(half).state.stop_reason == "three are enough"


LEFT = """
import threading, time

@hookimpl
def on_train_start(trainer):
    if trainer.world.rank == trainer.world.world_size - 1:
        threading.Thread(target=time.sleep, args=(1000,), name="uploader").start()
"""


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_a_thread_that_a_plugin_leaves_does_not_keep_a_finished_run(run_ranks, ranks):
    run = run_ranks(ranks, LEFT + "def wait(): time.sleep(1000)\n".replace("wait", "unused"), hang_timeout=1.0)
    assert run.status == 1
    named = ("'uploader'", "after the run", "step ", f"rank {ranks - 1}", "on_teardown")
    assert re.search(facts(*named), run.stderr), run.output


def test_a_thread_that_ends_in_time_is_waited_for(run_ranks, rank_notes):
    source = """
import threading

@hookimpl
def on_teardown():
    threading.Thread(target=lambda: (threading.Event().wait(0.2), note(uploaded=True))).start()
"""
    assert run_ranks(2, source).status == 0
    assert rank_notes(0) == rank_notes(1) == [{"uploaded": True}], "in several ranks as in one"
