"""The pytest plugin ``hooktrain.testing``: fixtures for tests of plugins, at no cost for other tests."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import textwrap

import pytest

from hooktrain import HooktrainError, testing
from hooktrain.testing import sample_rows
from hooktrain.testing.subprocess_runs import finish
from hooktrain.testing.tiny_llama import FORMATS
from tests.facts import facts

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


def run_pytest(pytester, *words: str) -> pytest.RunResult:
    """Run pytest in a forked process; pytester's own method starts a new interpreter."""
    return pytester.run(sys.executable, "-m", "pytest", *words)


def test_the_fixtures_need_no_configuration(pytester):
    pytester.makepyfile(test_mine=MINE)
    run_pytest(pytester, *QUIET).assert_outcomes(passed=3)


@pytest.mark.parametrize("autoload", [True, False])
def test_naming_the_plugin_twice_works(pytester, monkeypatch, autoload):
    if not autoload:
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeconftest("pytest_plugins = ['hooktrain.testing']")
    pytester.makepyfile(test_mine="def test_it(run_tiny):\n    assert run_tiny(train_iters=1).global_step == 1\n")
    run_pytest(pytester, *QUIET).assert_outcomes(passed=1)


@pytest.mark.usefixtures("real_starts")
def test_other_tests_import_five_light_modules(pytester):
    """Neither torch nor anything else of hooktrain is imported."""
    pytester.makepyfile(
        test_theirs="""
        import sys

        def test_it():
            ours = sorted(name for name in sys.modules if name.startswith("hooktrain") or name == "torch")
            light = ["exports", "renamed", "testing", "testing.fixtures"]
            assert ours == ["hooktrain", *(f"hooktrain.{name}" for name in light)]
        """
    )
    done = run_pytest(pytester, *QUIET, "-W", "error")
    done.assert_outcomes(passed=1)
    assert "conformance" not in done.stdout.str()


def test_options_markers_and_fixtures_are_described(pytester):
    assert "--hooktrain-timeout=SECONDS" in run_pytest(pytester, "--help").stdout.str()
    assert "@pytest.mark.hooktrain_conformance" in run_pytest(pytester, "--markers").stdout.str()
    assert "run_tiny" in run_pytest(pytester, *QUIET, "--fixtures").stdout.str()
    blocked = run_pytest(pytester, *QUIET, "-p", "no:hooktrain.testing", "--fixtures").stdout.str()
    assert "tmp_path" in blocked and "run_tiny" not in blocked


def test_everything_is_importable():
    assert [name for name in testing.__all__ if not hasattr(testing, name)] == []


@pytest.mark.usefixtures("real_starts")
def test_torch_is_imported_by_what_needs_it():
    code = "import sys, hooktrain.testing; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout.strip() == b"False"


@pytest.mark.parametrize("format", FORMATS)
def test_examples_of_a_format(run_chat, write_rows, format):
    rows = str(write_rows(format))
    train = {"type": "causal"} if format == "text" else {}
    trainer = run_chat(data={"sources": [rows], "max_length": 96, "pack_samples": False}, train_iters=1, **train)
    assert len(trainer.data.train) == 6


def test_an_unknown_format():
    with pytest.raises(ValueError, match=facts("'message'", "'messages'")):
        sample_rows("message")


def test_without_transformers(monkeypatch, tmp_path):
    from hooktrain.testing import save_llama

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(HooktrainError, match=facts("transformers", "hooktrain-hf")):
        save_llama(tmp_path)


CHILD = """
import os, threading

with open("alive", "wb", buffering=0) as pipe:
    pipe.write(b"x")
    threading.Event().wait()
"""


def test_what_takes_too_long_is_killed_with_its_children(tmp_path, monkeypatch):
    """The time limit ends when the child process runs its own code, however long that takes."""
    os.mkfifo(tmp_path / "alive")
    alive = os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)
    wait = subprocess.Popen.communicate
    waited = []

    def communicate(process, stdin=None, timeout=None):
        if timeout is None:
            return wait(process, stdin)
        waited.append(timeout)
        assert read(alive) == b"x"
        raise subprocess.TimeoutExpired(process.args, timeout)

    monkeypatch.setattr(subprocess.Popen, "communicate", communicate)
    code = f"""
    import subprocess, sys
    print("started", flush=True)
    subprocess.run([sys.executable, "-c", {CHILD!r}])
    """
    with pytest.raises(HooktrainError, match=facts(" 2 s", "--hooktrain-timeout", "started")):
        finish([sys.executable, "-c", textwrap.dedent(code)], tmp_path, timeout=2.0)
    assert waited == [2.0]
    assert read(alive) == b"", "the child has ended: the pipe has no writer"
    os.close(alive)


def read(pipe: int) -> bytes:
    """Return what is written to a pipe next; empty when its writers have ended."""
    ready, _, _ = select.select([pipe], [], [], 60)
    assert ready, "nothing is written, and the writers still run"
    return os.read(pipe, 1)
