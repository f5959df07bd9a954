"""``--nproc``: a rank that raises, dies or hangs ends all of them within seconds, and the first cause stands on top."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.facts import facts
from tests.preload import DEEPSPEED

pytestmark = pytest.mark.preload(*DEEPSPEED)

STRATEGIES = [
    {"device": "cpu", "dtype": "fp32", "timeout": 4},
    {"type": "deepspeed", "zero_stage": 2, "device": "cpu", "dtype": "fp32", "timeout": 4},
]
either = pytest.mark.parametrize("strategy", STRATEGIES, ids=["torch", "deepspeed"])
thoroughly = pytest.mark.parametrize(
    "strategy", [STRATEGIES[0], pytest.param(STRATEGIES[1], marks=pytest.mark.thorough)], ids=["torch", "deepspeed"]
)

FAILING = """
import time

@hookimpl
def on_microbatch_start(trainer):
    if trainer.world.rank == 1 and trainer.global_step == 2:
        {what}
"""


LOST = re.compile(r"^hooktrain: (?=.*rank 0)(?=.*(connection|\b4 s\b)).*step 2", re.MULTILINE)
"""What the other rank notices, on a line of its own below the first cause."""


WHERE = "plugin 'extra', hook on_microbatch_start, step 2, rank 1"


def first_line(output: str) -> str:
    return next(line for line in output.splitlines() if line.startswith("hooktrain: rank"))


@either
def test_a_rank_that_raises(run_ranks, strategy):
    run = run_ranks(2, FAILING.format(what="raise KeyError('out of luck')"), strategy=strategy, micro_batch_size=1)
    assert run.status == 1
    cause = facts("rank 1: ", f"{WHERE}: ", "KeyError: 'out of luck'")
    assert re.search(cause, first_line(run.output))
    assert "in on_microbatch_start" in run.output, "the traceback of the plugin"
    assert "/click/" not in run.output, "what stands between the command line and the hook says nothing"
    assert "/pluggy/" not in run.output


def test_an_error_with_a_clear_sentence_has_no_traceback(run_ranks):
    source = "from hooktrain import HooktrainError\n" + FAILING
    run = run_ranks(2, source.format(what="raise HooktrainError('data: the moon is full')"), micro_batch_size=1)
    assert run.status == 1
    assert first_line(run.output) == f"hooktrain: rank 1: data: the moon is full [{WHERE}]"
    assert "Traceback" not in run.output


@thoroughly
def test_a_rank_that_is_killed(run_ranks, strategy):
    run = run_ranks(2, FAILING.format(what="os.kill(os.getpid(), 9)"), strategy=strategy, micro_batch_size=1)
    assert run.status == 128 + 9
    assert re.search(facts("rank 1: ", "SIGKILL", "memory"), first_line(run.output))
    assert LOST.search(run.output), run.output


@thoroughly
@pytest.mark.parametrize("status", [7, 0])
def test_a_rank_whose_hook_calls_exit(run_ranks, strategy, status):
    source = "import sys\n" + FAILING.format(what=f"sys.exit({status})")
    run = run_ranks(2, source, strategy=strategy, micro_batch_size=1)
    assert run.status == (status or 1)
    assert re.search(facts("rank 1: ", f"{WHERE}: ", f"status {status}"), first_line(run.output))
    assert "in on_microbatch_start" in run.output, "where that was"
    assert LOST.search(run.output), run.output
    assert run.output.count("Traceback") == 1


@thoroughly
@pytest.mark.parametrize("status", [9, 0])
def test_a_rank_that_leaves_without_a_word(run_ranks, strategy, status):
    run = run_ranks(2, FAILING.format(what=f"os._exit({status})"), strategy=strategy, micro_batch_size=1)
    assert run.status == (status or 1)
    assert re.search(facts("rank 1: ", f"status {status}", "step 2"), first_line(run.output))
    assert LOST.search(run.output), run.output
    assert "Traceback" not in run.output, "of the rank that is innocent"


@pytest.mark.parametrize(
    ("hook", "given", "status", "said"),
    [
        ("check_recipe", "0", 1, "status 0"),
        ("make_model", "'no luck'", 1, "no luck"),
        ("on_step_end", "7", 7, "status 7"),
        ("on_train_end", "0", 1, "status 0"),
    ],
)
def test_a_hook_that_ends_the_only_process(run_ranks, hook, given, status, said):
    """A run that was not finished does not look like one that was."""
    run = run_ranks(1, f"import sys\n@hookimpl\ndef {hook}():\n    sys.exit({given})\n")
    assert run.status == status
    line = rf"^hooktrain: plugin 'extra', hook {hook}, step \d+, rank 0: .*\b{said}\b"
    assert re.search(line, run.output, re.MULTILINE), run.output


def test_rank_0_that_ends_when_the_training_has_ended(run_ranks):
    source = "import sys\n@hookimpl\ndef on_train_end(trainer):\n    if trainer.world.is_main: sys.exit(0)\n"
    run = run_ranks(2, source)
    assert run.status == 1
    cause = facts("rank 0: plugin 'extra', hook on_train_end, step 4, rank 0: ", "status 0")
    assert re.search(cause, first_line(run.output))


def test_exit_in_the_teardown_keeps_nobody_from_theirs(run_ranks, rank_notes):
    source = """
import sys

@hookimpl(tryfirst=True)
def on_teardown():
    sys.exit(0)

class Other:
    @hookimpl
    def on_teardown(self):
        note(torn_down=True)
"""
    run = run_ranks(1, source, plugins={"load": ["hooktrain.testing:TinyPlugin", "extra:Other", "extra"]})
    assert run.status == 0
    assert "warning: plugin 'extra', hook on_teardown: SystemExit: 0" in run.output
    assert rank_notes() == [{"torn_down": True}]


@thoroughly
def test_a_rank_that_hangs(run_ranks, strategy):
    """The others give up after ``strategy.timeout``; then the one that does not end is asked where it is, and killed."""
    run = run_ranks(2, FAILING.format(what="time.sleep(1000)"), strategy=strategy, micro_batch_size=1)
    assert run.status == 128 + 9
    cause = first_line(run.output)
    assert cause.startswith("hooktrain: rank 1: ") and re.search("h[au]ng", cause), cause
    assert "in on_microbatch_start" in run.output, "where it hangs"
    line = r"^hooktrain: (?=.*rank 0)(?=.*\b4 s\b)(?=.*strategy\.timeout).*step 2"
    assert re.search(line, run.output, re.MULTILINE), run.output
    assert "<hook " not in run.output and "<string>" not in run.output, "how hooks are called says nothing"


def test_ranks_end_when_their_launcher_is_killed(tmp_path: Path):
    source = """
import os
from pathlib import Path
from hooktrain import hookimpl

@hookimpl
def on_microbatch_start(trainer):
    Path(os.environ["PIDS"], str(os.getpid())).touch()
"""
    (tmp_path / "extra.py").write_text(source)
    (tmp_path / "pids").mkdir()
    (tmp_path / "recipe.yaml").write_text(
        "type: tiny\nepochs: 1000000\nlog_interval: 1000000\nstrategy: {device: cpu, dtype: fp32}\nconsole: {enabled: false}\n"
        f"run_dir: {tmp_path / 'run'}\n"
        "checkpoint: {type: full, save_end_of_training: true}\n"
        "plugins: {load: ['hooktrain.testing:TinyPlugin', extra]}\n"
    )
    launcher = subprocess.Popen(
        [sys.executable, "-m", "hooktrain", "train", str(tmp_path / "recipe.yaml"), "--nproc", "2"],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PIDS": str(tmp_path / "pids"), "OMP_NUM_THREADS": "1"},
    )
    until = time.monotonic() + 60
    while len(list((tmp_path / "pids").iterdir())) < 2:
        assert time.monotonic() < until
        time.sleep(0.05)
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    ranks = [int(path.name) for path in (tmp_path / "pids").iterdir()]
    while any(Path(f"/proc/{rank}/cmdline").exists() and Path(f"/proc/{rank}/cmdline").read_bytes() for rank in ranks):
        assert time.monotonic() < until, "a rank outlives the process that started it"
        time.sleep(0.05)
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()  # they end as at SIGTERM, and nothing is lost
    assert (saved / "manifest.json").exists()


IMPORTS = """
import os, time
from pathlib import Path

if os.environ.get("RANK") == "1":
    Path(os.environ["NOTES"]).with_suffix(".importing").touch()
    while True:
        time.sleep(0.01)
"""


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.thorough)])
def test_a_signal_while_ranks_import_ends_them_and_blames_none(tmp_path: Path, name: str):
    (tmp_path / "extra.py").write_text(IMPORTS + "from hooktrain import hookimpl\n@hookimpl\ndef on_log(): pass\n")
    (tmp_path / "recipe.yaml").write_text(
        "type: tiny\nstrategy: {device: cpu, dtype: fp32}\nconsole: {enabled: false}\n"
        f"run_dir: {tmp_path / 'run'}\nplugins: {{load: ['hooktrain.testing:TinyPlugin', extra]}}\n"
    )
    found = {"PYTHONPATH": str(tmp_path), "NOTES": str(tmp_path / "notes"), "OMP_NUM_THREADS": "1"}
    launcher = subprocess.Popen(
        [sys.executable, "-m", "hooktrain", "train", str(tmp_path / "recipe.yaml"), "--nproc", "2"],
        env={**os.environ, **found},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until = time.monotonic() + 90
    while not (tmp_path / "notes.importing").exists():
        assert launcher.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    launcher.send_signal(getattr(signal, name))
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + getattr(signal, name)
    assert output.splitlines()[-1].startswith(f"hooktrain: {name}: ") and "rank" not in output, output
