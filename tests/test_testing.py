"""The pytest plugin ``hooktrain.testing``: what it gives to whoever writes plugins, and nothing to anybody else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time

import pytest

from hooktrain import HooktrainError
from hooktrain.testing import sample_rows
from hooktrain.testing.language import FORMATS
from hooktrain.testing.processes import finish

pytest_plugins = ["pytester"]

QUIET = ("-p", "no:cacheprovider", "--strict-markers")
MINE = '''
from hooktrain import hookimpl
from hooktrain.testing import Recorder

SOURCE = """
@hookimpl
def on_train_end(trainer):
    note(rank=trainer.world.rank, steps=trainer.global_step)
"""


def test_in_process(run_tiny):
    recorder = Recorder()
    run_tiny(recorder, train_iters=2)
    assert recorder.hooks.count("on_step_end") == 2


def test_command_line(run_cli, tiny_recipe):
    run = run_cli("train", tiny_recipe, "-o", "train_iters=3", source="@hookimpl\\ndef on_train_end(): print('end')")
    assert (run.status, run.stdout.strip(), run.stderr) == (0, "end", "")
    assert [line["step"] for line in run.metrics] == [1, 2, 3]
    wrong = run_cli("train", {**tiny_recipe, "epochz": 1})
    assert wrong.status == 1 and "epochz" in wrong.stderr


def test_ranks(run_ranks, rank_notes):
    run = run_ranks(2, SOURCE, train_iters=2)
    assert run.status == 0, run.output
    assert [rank_notes(rank) for rank in (0, 1)] == [[{"rank": 0, "steps": 2}], [{"rank": 1, "steps": 2}]]
'''


def test_an_author_writes_no_line_for_it(pytester):
    pytester.makepyfile(test_mine=MINE)
    pytester.runpytest_subprocess(*QUIET).assert_outcomes(passed=3)


@pytest.mark.parametrize("autoload", [True, False])
def test_the_line_that_was_needed_once_does_no_harm(pytester, monkeypatch, autoload):
    if not autoload:
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeconftest("pytest_plugins = ['hooktrain.testing']")
    pytester.makepyfile(test_mine="def test_it(run_tiny):\n    assert run_tiny(train_iters=1).global_step == 1\n")
    pytester.runpytest_subprocess(*QUIET).assert_outcomes(passed=1)


def test_tests_that_have_nothing_to_do_with_it(pytester):
    """Three light modules are imported, and neither torch nor anything else."""
    pytester.makepyfile(
        test_theirs="""
        import sys

        def test_it():
            ours = sorted(name for name in sys.modules if name.startswith("hooktrain") or name == "torch")
            assert ours == ["hooktrain", "hooktrain.testing", "hooktrain.testing.fixtures"]
        """
    )
    done = pytester.runpytest_subprocess(*QUIET, "-W", "error")
    done.assert_outcomes(passed=1)
    assert "conformance" not in done.stdout.str()
    asked = pytester.runpytest_subprocess("--help").stdout.str()
    assert "--hooktrain-timeout=SECONDS" in asked
    assert "@pytest.mark.hooktrain_conformance" in pytester.runpytest_subprocess("--markers").stdout.str()
    left_out = pytester.runpytest_subprocess(*QUIET, "-p", "no:hooktrain.testing", "--fixtures").stdout.str()
    assert "run_tiny" not in left_out


@pytest.mark.usefixtures("real_starts")
def test_everything_is_importable_and_nothing_is_imported():
    code = """
    import json, sys
    import hooktrain.testing as testing
    light = "torch" not in sys.modules
    print(json.dumps([light, [name for name in testing.__all__ if not hasattr(testing, name)]]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == [True, []]


@pytest.mark.parametrize("format", FORMATS)
def test_rows_of_a_format(run_chat, write_rows, format):
    rows = str(write_rows(format))
    train = {"type": "causal"} if format == "text" else {}
    trainer = run_chat(data={"sources": [rows], "max_length": 96, "pack_samples": False}, train_iters=1, **train)
    assert len(trainer.data.train) == 6


def test_a_format_that_there_is_not():
    with pytest.raises(ValueError, match="given the format 'message' .did you mean 'messages'"):
        sample_rows("message")


def test_without_transformers(monkeypatch, tmp_path):
    from hooktrain.testing import save_llama

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(HooktrainError, match="made with transformers, which is not installed; install hooktrain-hf"):
        save_llama(tmp_path)


def test_what_takes_too_long_is_killed_with_its_children(tmp_path):
    code = """
    import os, subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    print(child.pid, flush=True)
    time.sleep(100)
    """
    began = time.monotonic()
    with pytest.raises(HooktrainError, match="has not ended after 2 s, and was killed") as caught:
        finish([sys.executable, "-c", textwrap.dedent(code)], tmp_path, timeout=2.0)
    assert time.monotonic() - began < 20
    pid = int(str(caught.value).splitlines()[-1])
    with pytest.raises(ProcessLookupError):
        for _ in range(200):
            os.kill(pid, 0)
            time.sleep(0.05)
