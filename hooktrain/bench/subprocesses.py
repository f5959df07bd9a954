"""Runs drivers, each in a process and an environment of its own."""

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
    """Runs sides.

    Args:
        work: folder for caches and what drivers write beside them.
        python: the Python of a peer's environment (None: hooktrain's own); raises when there is none.
        timeout: seconds after which a run is ended.
        threads: of each process, unless its specification has ``threads``.

    To every finding it adds ``others``: the processor time that other programs (and the host beneath) used meanwhile,
    as a share of what the run itself used, because a timing beside other work is worth little; None where unknown.
    """

    def __init__(
        self, work: Path, python: Callable[[Peer | None], Path], timeout: float = 1800, threads: int = 1
    ) -> None:
        self._work, self._python, self._timeout, self.threads = work, python, timeout, threads
        work.mkdir(parents=True, exist_ok=True)

    def run(self, side: Variant) -> Findings:
        """Start the driver, wait, and return what it found."""
        try:
            python = self._python(side.peer)
        except Exception as problem:
            return {"failed": str(problem), "absent": True}
        home = self._work / (side.after or side.name).replace("/", "-")
        if side.after is None:
            shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True, exist_ok=True)
        specification = {"threads": self.threads, **side.specification}
        words = [str(python), "-m", str(side.driver), json.dumps(specification)]
        environment = self._environment(side, home, python, str(specification["threads"]))
        before = used_by_children(), busy_seconds()
        began = time.perf_counter()
        environment[BEGAN] = repr(time.time())
        made = _within(self._timeout, words, home, environment)
        findings: Findings = {"failed": f"no result after {self._timeout:.0f} s"} if made is None else _parse(made)
        findings["wall_seconds"] = time.perf_counter() - began
        findings["others"] = others_share(before, (used_by_children(), busy_seconds()))
        return findings

    def _environment(self, side: Variant, home: Path, python: Path, threads: str) -> dict[str, str]:
        own = ("PYTHON", "HF_", "HOOKTRAIN")
        made = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        if side.peer:  # kernels that a peer compiles stay in its environment, so that this is done once
            compiled = python.parent.parent / "compiled"
            for lock in compiled.rglob("lock"):  # of a run that was interrupted; torch would wait for it for ever
                lock.unlink()
            made["TORCH_EXTENSIONS_DIR"] = str(compiled)
        return made | {
            "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}",  # compilers are found through it
            "PYTHONPATH": os.pathsep.join(self._path(side)),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": threads,
            "RAYON_NUM_THREADS": threads,
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(home / "hub"),
            "XDG_CACHE_HOME": str(home / "cache"),
            **side.environment,
        }

    def _path(self, side: Variant) -> list[str]:
        """What a driver may import besides what is installed: all that this process can, unless it is a peer's.

        A peer sees hooktrain, for ``hooktrain.bench.driver``, and the package of its driver, and nothing that lies
        beside them.
        """
        if side.peer is None:
            return [str(Path(place).absolute()) for place in sys.path if place]
        folder = self._work / "path"
        folder.mkdir(exist_ok=True)
        for name in ("hooktrain", str(side.driver).partition(".")[0]):
            spec = importlib.util.find_spec(name)
            if spec is None or not spec.submodule_search_locations or (folder / name).is_symlink():
                continue
            (folder / name).symlink_to(next(iter(spec.submodule_search_locations)))
        return [str(folder)]


def _within(
    seconds: float, words: list[str], folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str] | None:
    """Run a program; None when it took longer, and then it is ended together with all that it started."""
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
            started.wait()  # which Popen does not do after Ctrl-C
            if isinstance(problem, subprocess.TimeoutExpired):
                return None
            raise
        return subprocess.CompletedProcess(words, started.returncode, out, errors)


def _parse(made: subprocess.CompletedProcess[str]) -> Findings:
    lines = made.stdout.strip().splitlines()
    if made.returncode == 0 and lines:
        findings: Findings = json.loads(lines[-1])
        return findings
    said = [line.strip() for line in made.stderr.splitlines() if line.strip()]
    sys.stderr.write("\n".join(said[-15:]) + "\n")
    sys.stderr.flush()
    how = f"exit code {made.returncode}" if made.returncode or said else "ended before it reported anything"
    return {"failed": f"{how}: {said[-1][:200] if said else 'no message'}"}


def used_by_children() -> float:
    """Processor seconds of the processes that this one started and waited for."""
    times = os.times()
    return times.children_user + times.children_system


def others_share(before: tuple[float, float | None], after: tuple[float, float | None]) -> float | None:
    """What others used of the processors, as a share of what the measured program used; pairs of (its, everybody's)."""
    own = after[0] - before[0]
    if before[1] is None or after[1] is None or own <= 0:
        return None
    return round(max(0.0, after[1] - before[1] - own) / own, 3)
