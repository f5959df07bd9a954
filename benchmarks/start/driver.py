"""Driver that times a command, from its start to its first output and to its end.

The specification: ``words``, the arguments of ``python``, and ``warmup``, the number of runs before the timed one, so
that its files are in the system's cache. Each run has a folder and caches of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hooktrain.bench.driver import drive


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Run the command, and return the findings of the last run."""
    return [_run(given["words"], Path(f"run-{number}").absolute()) for number in range(given["warmup"] + 1)][-1]


def _run(words: Sequence[str], folder: Path) -> dict[str, Any]:
    folder.mkdir()
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    environment.pop("PYTHONUNBUFFERED", None)  # users do not set it, and it changes when output is flushed
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *words],
        bufsize=0,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        first_seconds = time.perf_counter() - began
        printed = (first + process.stdout.read()).decode()
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)}: status {process.returncode}: {printed.strip()[-200:]}")
    return {
        "seconds": seconds,
        "first_seconds": first_seconds if first else None,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_mib": round(used.ru_maxrss / 1024, 1),
        "lines": len(printed.splitlines()),
    }


if __name__ == "__main__":
    drive(measure, "torch", "transformers", "hooktrain")
