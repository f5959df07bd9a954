"""Freed memory is kept on a processor, so that steps do not take it page by page from the system again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")

PROGRAM = """
import resource, torch
from hooktrain_torch.memory import keep_freed_memory
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
def test_memory_is_taken_from_the_system_once(environment: dict[str, str], expected: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected
