"""A disk that is full, or read-only from some step on: a real file system, on one rank and on two."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hooktrain_torch import problem_of

from tests.preload import DEEPSPEED

pytestmark = pytest.mark.preload(*DEEPSPEED)

Mount = Callable[[int], Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """``mount(bytes)``: a file system of that size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def make(size: int) -> Path:
        words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if os.geteuid() or subprocess.run(words, check=False, capture_output=True).returncode:
            pytest.skip("file systems can only be mounted by root")
        return folder

    yield make
    subprocess.run(["umount", "-R", str(folder)], check=False, capture_output=True)


READ_ONLY = """
import os
import subprocess

@hookimpl
def on_step_end(trainer):
    saved = Path("{folder}") / "saved" / "step-00000002"
    if trainer.global_step > 2 and saved.exists() and trainer.world.is_main:
        # over itself, as the folder's lock is open for writing and keeps its file system from becoming read-only
        if not os.path.ismount(saved.parent):
            subprocess.run(["mount", "--bind", saved.parent, saved.parent], check=True)
        while subprocess.run(["mount", "-o", "remount,bind,ro", saved.parent], capture_output=True).returncode:
            pass  # a save in the background still writes
    trainer.strategy.barrier()
"""
FULL_ON_RANK_1 = """
import resource

@hookimpl(wrapper=True)
def save_checkpoint(trainer):
    if trainer.world.rank == 1:  # which can write no file that is longer, as on a disk of its own that is full
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    try:
        return (yield)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""
ZERO = {"type": "deepspeed", "zero_stage": 3, "dtype": "fp32", "device": "cpu"}


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    saves = {"type": "full", "save_every_n_steps": 2, "output_dir": str(folder / "saved"), "auto_resume": True}
    return {"checkpoint": [{**saves, **more}], "micro_batch_size": 1, "optimizer": {"type": "adamw", "lr": 0.01}}


@pytest.mark.parametrize(
    ("ranks", "strategy"),
    [(1, None), (2, None), pytest.param(2, ZERO, marks=pytest.mark.thorough)],
    ids=["1", "2", "2, ZeRO-3"],
)
def test_a_full_disk(run_ranks, mount, ranks, strategy):
    """There is room for one checkpoint and a half; with more of it, the run resumes from the complete one."""
    folder = mount(80 << 10 if ranks == 1 else 112 << 10)
    more = {"strategy": strategy} if strategy else {}
    run = run_ranks(ranks, **settings(folder), **more)
    assert run.status == 1, run.output
    assert re.search(
        rf"{folder}/saved/step-\d+: .*rank \d.*earlier.*No space left on device.*output_dir", run.output
    ), run.output
    left = sorted(path.name for path in (folder / "saved").iterdir())
    assert left
    assert all(name.startswith("step-") for name in left), "nothing half-written is left to fill the disk"
    assert all(problem_of(folder / "saved" / name) is None for name in left)
    subprocess.run(["mount", "-o", "remount,size=8m", str(folder)], check=True)
    again = run_ranks(ranks, **settings(folder), **more)
    assert again.status == 0, again.output


def test_the_first_save_on_a_full_disk_promises_no_earlier_one(run_ranks, tmp_path):
    """And it is the rank that met it of which all ranks tell."""
    run = run_ranks(2, FULL_ON_RANK_1, **settings(tmp_path))
    assert run.status == 1, run.output
    said = [line for line in run.output.splitlines() if "File too large" in line]
    assert len(said) == 1, run.output
    assert re.fullmatch(
        rf"hooktrain: rank 1: {tmp_path}/saved/step-00000002: .*rank 1 .*\bno earlier.*File too large.*output_dir"
        r" \[step 2, rank 1\]",
        said[0],
    ), said


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.thorough), 2])
@pytest.mark.parametrize("background", [False, True], ids=["", "in the background"])
def test_a_disk_that_becomes_read_only(run_ranks, mount, ranks, background):
    folder = mount(8 << 20)
    run = run_ranks(ranks, READ_ONLY.format(folder=folder), **settings(folder, asynchronous=background))
    assert re.search("Read-only file system.*output_dir", run.output)
    assert run.status == (0 if background else 1), run.output
    left = sorted((folder / "saved").glob("[!.]*"))
    assert left[0].name == "step-00000002"
    assert all(problem_of(path) is None for path in left)


ASKED = """
import signal

@hookimpl
def on_checkpoint_end(trainer, path):
    if trainer.world.is_main:  # one checkpoint is complete, and there is no room for more
        (path.parent / "fill").write_bytes(bytes((os.statvfs(path).f_bavail - 1) * 4096))
    trainer.strategy.barrier()

@hookimpl
def on_step_end(trainer):
    if trainer.global_step == 5 and {asked} and trainer.world.is_main:
        os.kill(os.getpid(), signal.SIGTERM)

@hookimpl
def on_train_end(trainer):
    note(ended=trainer.global_step)

@hookimpl
def on_teardown():
    note(torn_down=True)
"""


@pytest.mark.parametrize(("ranks", "asked"), [(1, False), (1, True), (2, False)], ids=["1", "1, SIGTERM", "2"])
def test_a_run_whose_last_state_cannot_be_saved_in_the_background_is_no_success(
    run_ranks, rank_notes, mount, ranks, asked
):
    folder = mount(8 << 20)
    saves = settings(folder, asynchronous=True, save_end_of_training=not asked)
    run = run_ranks(ranks, ASKED.format(asked=asked), **saves, exit_iteration=0 if asked else 4)
    assert run.status == 1, run.output
    last = 5 if asked else 4
    where = folder / "saved"
    assert re.search(
        rf"^hooktrain: (rank \d: )?step {last}\b.* {where}/step-00000002: {where}/step-0000000{last}: .*rank 0 .*No space left",
        run.output,
        re.MULTILINE,
    ), run.output
    warned = [line for line in run.output.splitlines() if "hooktrain: warning: " in line and "No space left" in line]
    assert len(warned) == 1 + asked, "each step once"
    assert not re.search(r"output_dir.*\brun\b", warned[-1]), "it ends there"
    for rank in range(ranks):
        assert rank_notes(rank) == [{"ended": last}, {"torn_down": True}], "all the rest is done"
    assert len(run.metrics) == last
    assert problem_of(where / "step-00000002") is None
