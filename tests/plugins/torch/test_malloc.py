"""Freed memory is kept on a processor, so that steps do not take it page by page from the system again; until the end."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")

PROGRAM = """
import resource, torch
from hooktrain_torch.malloc import keep_freed_memory
torch.set_num_threads(1)
done = keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(16_000_000) for _ in range(3)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first, *_, last = [faults() for _ in range(12)]  # it takes a few until what is free lies together
print(done, last < first / 10)
"""


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "True True"),
        ({"MALLOC_TRIM_THRESHOLD_": "131072"}, "False False"),
        ({"GLIBC_TUNABLES": "glibc.malloc.mmap_max=100"}, "False False"),
    ],
)
@pytest.mark.usefixtures("real_starts")
def test_memory_is_taken_from_the_system_once(environment: dict[str, str], expected: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected


AFTERWARDS = """
import torch
from hooktrain import hookimpl
from hooktrain.testing.in_process import train
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
class Takes:
    @hookimpl
    def on_step_end(self, trainer):
        # in small pieces, with one at the end that stays: what is free before it is not at the heap's end
        taken = [torch.ones(250_000) for _ in range(400)]
        self.left, seen[:] = torch.ones(250_000), [resident()]
seen, plugin = [], Takes()
recipe = {"type": "tiny", "run_dir": "run", "train_iters": 2, "strategy": {"device": "cpu"}, "console": {"enabled": False}}
train(recipe, plugin)
print(seen[0] - resident())
"""


@pytest.mark.usefixtures("real_starts")
def test_memory_is_given_back_at_the_end_of_a_run(tmp_path: Path) -> None:
    """400 MB that a step had are the next program's after the run, as in a notebook that continues."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", AFTERWARDS],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout.split()[-1]) > 300e6
