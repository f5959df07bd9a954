"""Run functions at the same time, each in a process of its own."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hooktrain import compat
from hooktrain.errors import failure_of
from hooktrain.testing.fork_server import forked_starts

__all__ = ["Done", "Job", "run_jobs"]


class Job(NamedTuple):
    """A function to run in a process of its own.

    Attributes:
        function: ``module:name`` of a function that takes ``arguments`` and returns what pickle can store.
        arguments: its keyword arguments.
        folder: the working directory, where the output and the result are kept.
        env: variables besides those of this process.
    """

    function: str
    arguments: Mapping[str, Any]
    folder: Path
    env: Mapping[str, str] = {}


class Done(NamedTuple):
    """The outcome of a job.

    Attributes:
        status: the exit status; negative where a signal ended it, None where it took too long.
        result: what the function returned.
        output: what it printed, a traceback included.
    """

    status: int | None
    result: Any
    output: str


def run_jobs(*jobs: Job, preload: Sequence[str] = (), timeout: float = 120.0) -> list[Done]:
    """Run jobs at the same time, each in a process of its own, and wait for all of them.

    When one fails, the others have ten more seconds: ranks wait for each other.

    Args:
        jobs: what to run.
        preload: modules that take seconds to import, for the server that is forked.
        timeout: seconds after which the jobs are killed.

    Raises:
        HooktrainError: when the modules cannot be imported.
    """
    processes = []
    for job in jobs:
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / "job.pickle").write_bytes(pickle.dumps((job.function, dict(job.arguments), list(sys.path))))
        with (job.folder / "output.txt").open("wb") as output, forked_starts(preload):
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", f"from {__name__} import _run_job; _run_job()"],
                    cwd=job.folder,
                    env={**os.environ, "OMP_NUM_THREADS": "1", **job.env},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
            )
    statuses = _wait(processes, timeout)
    return [_done(job.folder, status) for job, status in zip(jobs, statuses, strict=True)]


def _run_job() -> None:
    """Run the job of the working directory."""
    name, arguments, path = pickle.loads(Path("job.pickle").read_bytes())
    sys.path[:] = path
    module, _, attribute = name.partition(":")
    status = 0
    try:
        result = getattr(importlib.import_module(module), attribute)(**arguments)
        Path("result.pickle").write_bytes(pickle.dumps(result))
    except BaseException as problem:
        traceback.print_exc()
        where = failure_of(problem).where  # the engine's own note on what failed
        print(f"{where}: {type(problem).__name__}: {problem}" if where else "", file=sys.stderr)
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    compat.exit_now(status)  # whatever threads a plugin has left


def _wait(processes: Sequence[subprocess.Popen[bytes]], timeout: float) -> list[int | None]:
    """Return the exit status of each process; kill what takes too long."""
    running, until = list(processes), time.monotonic() + timeout
    while running and time.monotonic() < until:
        for process in [each for each in running if each.poll() is not None]:
            running.remove(process)
            if process.returncode != 0:
                until = min(until, time.monotonic() + 10)
        time.sleep(0.005)
    for process in running:
        process.kill()
        process.wait()
    return [None if process in running else process.returncode for process in processes]


def _done(folder: Path, status: int | None) -> Done:
    result, path = None, folder / "result.pickle"
    if status == 0 and path.exists():
        result = pickle.loads(path.read_bytes())
    return Done(status, result, (folder / "output.txt").read_text(encoding="utf-8", errors="replace"))
