"""A process that has imported what takes seconds and has run nothing, to be forked for each job.

A check that needs fresh processes would spend most of its time on importing torch. A fork of a process that has run
nothing is as good as a new one: no thread of torch has started, and no plugin has been imported.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hooktrain.errors import HooktrainError

__all__ = ["Done", "Job", "Zygote", "zygote"]


class Job(NamedTuple):
    """What one process is to do.

    Attributes:
        function: ``module:name`` of a function that takes ``arguments`` and returns what pickle can carry.
        arguments: its keyword arguments.
        folder: where its output and its result are kept, and where it runs.
        env: variables besides those of the process that asks.
    """

    function: str
    arguments: Mapping[str, Any]
    folder: Path
    env: Mapping[str, str] = {}


class Done(NamedTuple):
    """What came of a job.

    Attributes:
        status: the exit status; negative where a signal ended it, None where it took too long.
        result: what the function returned.
        output: what it printed, a traceback included.
    """

    status: int | None
    result: Any
    output: str


class Zygote:
    """The process that is forked, as seen from the one that asks.

    Args:
        preload: modules that it imports.
    """

    def __init__(self, preload: Sequence[str]) -> None:
        self._preload = preload
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve()", *preload],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    def run(self, *jobs: Job, timeout: float = 120.0) -> list[Done]:
        """Run jobs at the same time, each in a process of its own, and wait for all of them.

        When one fails, the others have ten more seconds: ranks wait for each other.

        Raises:
            HooktrainError: when the modules cannot be imported.
        """
        for job in jobs:
            job.folder.mkdir(parents=True, exist_ok=True)
            (job.folder / "job.pickle").write_bytes(pickle.dumps((job.function, dict(job.arguments))))
        asked = [(str(job.folder), {**os.environ, "OMP_NUM_THREADS": "1", **job.env}) for job in jobs]
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            pickle.dump((asked, timeout, list(sys.path)), stdin)
            stdin.flush()
            statuses = pickle.load(stdout)
        except (EOFError, BrokenPipeError) as problem:
            raise HooktrainError(
                f"conformance: a process that was to import {', '.join(self._preload)} has ended, and said why on its"
                " standard error; install what is missing, such as hooktrain-hf and hooktrain-sft for recipe='chat'"
            ) from problem
        return [_done(job.folder, status) for job, status in zip(jobs, statuses, strict=True)]

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(10)


def _done(folder: Path, status: int | None) -> Done:
    result, path = None, folder / "result.pickle"
    if status == 0 and path.exists():
        result = pickle.loads(path.read_bytes())
    output = folder / "output.txt"
    return Done(status, result, output.read_text(encoding="utf-8", errors="replace") if output.exists() else "")


_started: dict[tuple[int, tuple[str, ...]], Zygote] = {}


def zygote(*preload: str) -> Zygote:
    """The process with these modules; started once in each process of pytest."""
    key = (os.getpid(), preload)
    if key not in _started:
        _started[key] = Zygote(preload)
        atexit.register(_started[key].close)
    return _started[key]


# ------------------------------------------------------------------------------------------------- in the process


def serve() -> None:
    """Import, and fork for each request until nobody asks any more."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a module prints while it is imported is no answer
    for module in sys.argv[1:]:
        importlib.import_module(module)
    while True:
        try:
            asked, timeout, path = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pids = [_fork(Path(folder), env, path) for folder, env in asked]
        pickle.dump(_wait(pids, timeout), answers)
        answers.flush()


def _fork(folder: Path, env: Mapping[str, str], path: Sequence[str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.clear()
        os.environ.update(env)
        sys.path[:] = path
        os.chdir(folder)
        name, arguments = pickle.loads((folder / "job.pickle").read_bytes())
        module, _, attribute = name.partition(":")
        function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
        (folder / "result.pickle").write_bytes(pickle.dumps(function(**arguments)))
        status = 0
    except BaseException as problem:
        traceback.print_exc()
        where = getattr(problem, "hooktrain_where", "")  # the engine's own note on what failed
        print(f"{where}: {type(problem).__name__}: {problem}" if where else "", file=sys.stderr)
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _wait(pids: Sequence[int], timeout: float) -> list[int | None]:
    """The exit status of each; what takes too long is killed."""
    until = time.monotonic() + timeout
    found: dict[int, int | None] = {}
    while len(found) < len(pids):
        for pid in pids:
            if pid not in found:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    found[pid] = os.waitstatus_to_exitcode(status)
                    if found[pid] != 0:
                        until = min(until, time.monotonic() + 10)
        if time.monotonic() > until:
            for pid in pids:
                if pid not in found:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    found[pid] = None
        time.sleep(0.005)
    return [found[pid] for pid in pids]
