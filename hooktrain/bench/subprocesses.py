"""Runs of drivers, each in a process and an environment of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from hooktrain.bench.driver import BEGAN
from hooktrain.bench.environments import Peer
from hooktrain.bench.machine import busy_seconds
from hooktrain.bench.model import Findings, Variant

__all__ = ["Runner", "others_share", "used_by_children"]


class Runner:
    """Runs the drivers of variants.

    It adds ``others`` to the findings: the processor time that other programs (and the host of a virtual machine) used
    meanwhile, as a share of the run's own, because a timing on a busy machine is worth little; None where unknown.

    Args:
        work: folder for caches and for what drivers write.
        python: returns the Python of a peer's environment (of None: hooktrain's own); raises when there is none.
        timeout: seconds after which a run is killed.
        threads: threads of each process, unless its specification has ``threads``.
    """

    def __init__(
        self, work: Path, python: Callable[[Peer | None], Path], timeout: float = 1800, threads: int = 1
    ) -> None:
        self._work, self._python, self._timeout, self.threads = work, python, timeout, threads
        work.mkdir(parents=True, exist_ok=True)

    def run(self, variant: Variant) -> Findings:
        """Start the driver, wait for it, and return its findings."""
        try:
            python = self._python(variant.peer)
        except Exception as problem:
            return {"error": str(problem), "not_installed": True}
        home = self._work / (variant.after or variant.name).replace("/", "-")
        if variant.after is None:
            shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True, exist_ok=True)
        specification = {"threads": self.threads, **variant.specification}
        words = [str(python), "-m", str(variant.driver), json.dumps(specification)]
        environment = self._environment(variant, home, python, str(specification["threads"]))
        before = used_by_children(), busy_seconds()
        began = time.perf_counter()
        environment[BEGAN] = repr(time.monotonic())
        made = _within(self._timeout, words, home, environment)
        findings: Findings = {"error": f"no result after {self._timeout:.0f} s"} if made is None else _parse(made)
        findings["wall_seconds"] = time.perf_counter() - began
        findings["others"] = others_share(before, (used_by_children(), busy_seconds()))
        return findings

    def _environment(self, variant: Variant, home: Path, python: Path, threads: str) -> dict[str, str]:
        own = ("PYTHON", "HF_", "HOOKTRAIN")
        made = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        if variant.peer:  # kernels that a peer compiles are kept in its environment, for all runs
            compiled = python.parent.parent / "compiled"
            for lock in compiled.rglob("lock"):  # left by a killed run; torch would wait for it forever
                lock.unlink()
            made["TORCH_EXTENSIONS_DIR"] = str(compiled)
        return made | {
            "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}",  # drivers find compilers through it
            "PYTHONPATH": os.pathsep.join(self._path(variant)),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": threads,
            "RAYON_NUM_THREADS": threads,
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(home / "hub"),
            "XDG_CACHE_HOME": str(home / "cache"),
            **variant.environment,
        }

    def _path(self, variant: Variant) -> list[str]:
        """Return the import path of a driver: this process's, unless it runs in a peer's environment.

        A peer sees hooktrain, for ``hooktrain.bench.driver``, and the package of its driver, and nothing else in their
        folders.
        """
        if variant.peer is None:
            return [str(Path(place).absolute()) for place in sys.path if place]
        folder = self._work / "path"
        folder.mkdir(exist_ok=True)
        for name in ("hooktrain", str(variant.driver).partition(".")[0]):
            spec = importlib.util.find_spec(name)
            if spec is None or not spec.submodule_search_locations or (folder / name).is_symlink():
                continue
            (folder / name).symlink_to(next(iter(spec.submodule_search_locations)))
        return [str(folder)]


def _within(
    seconds: float, words: list[str], folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str] | None:
    """Run a program; after the time limit, kill it and all that it started, and return None."""
    with subprocess.Popen(
        words,
        cwd=folder,
        env=environment,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as started:
        try:
            out, errors = started.communicate(timeout=seconds)
        except BaseException as problem:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()  # Popen does not after Ctrl-C
            if isinstance(problem, subprocess.TimeoutExpired):
                return None
            raise
        return subprocess.CompletedProcess(words, started.returncode, out, errors)


def _parse(made: subprocess.CompletedProcess[str]) -> Findings:
    lines = made.stdout.strip().splitlines()
    said = [line.rstrip() for line in made.stderr.splitlines() if line.strip()]
    if made.returncode == 0 and lines:
        findings: Findings = json.loads(lines[-1])
    else:
        how = f"exit code {made.returncode}" if made.returncode or said else "ended without a result"
        findings = {"error": f"{how}: {said[-1].strip() if said else 'no message'}"}
    if "error" in findings:
        print(*said[-15:], sep="\n", file=sys.stderr, flush=True)
    return findings


def used_by_children() -> float:
    """Return the processor seconds of the processes that this one started and waited for."""
    times = os.times()
    return times.children_user + times.children_system


def others_share(before: tuple[float, float | None], after: tuple[float, float | None]) -> float | None:
    """Return what other programs used of the processors, as a share of what the measured program used.

    Args:
        before, after: processor seconds of the measured program, and of all programs.
    """
    own = after[0] - before[0]
    if before[1] is None or after[1] is None or own <= 0:
        return None
    return round(max(0.0, after[1] - before[1] - own) / own, 3)
