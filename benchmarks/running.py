"""Runs drivers, each in a process and an environment of its own, taking turns."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from benchmarks.machine import busy_seconds

__all__ = ["Findings", "Runner", "Side", "take_turns"]

_PACKAGE = Path(__file__).parent

Findings = dict[str, Any]
"""What a driver printed; or ``failed``, why there is nothing; and ``others``, see :class:`Runner`."""


@attrs.frozen(kw_only=True)
class Side:
    """One of those that take turns.

    Attributes:
        name: unique among those measured together.
        driver: the module to run.
        peer: the environment to run it in; None for hooktrain's own.
        specification: what the driver reads.
        after: another side, whose caches this one finds; caches are empty otherwise.
    """

    name: str
    driver: str
    specification: Mapping[str, Any]
    peer: str | None = None
    after: str | None = None


class Runner:
    """Runs sides.

    Args:
        work: folder for caches and what drivers write beside them.
        python: the Python of a peer's environment (None: hooktrain's own); raises when there is none.
        timeout: seconds after which a run is ended.

    To every finding it adds ``others``: the processor time that other programs (and the host beneath) used meanwhile,
    as a share of what the run itself used, because a timing beside other work is worth little; None where unknown.
    """

    def __init__(self, work: Path, python: Callable[[str | None], Path], timeout: float) -> None:
        self._work, self._python, self._timeout = work, python, timeout
        self._path = work / "path"  # of all that lies beside this package, a driver may see only this package
        self._path.mkdir(parents=True, exist_ok=True)
        (self._path / _PACKAGE.name).symlink_to(_PACKAGE)

    def run(self, side: Side) -> Findings:
        """Start the driver, wait, and return what it found."""
        try:
            python = self._python(side.peer)
        except Exception as problem:
            return {"failed": str(problem)}
        home = self._work / (side.after or side.name)
        if side.after is None:
            shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True, exist_ok=True)
        before = _used(), busy_seconds()
        began = time.perf_counter()
        words = [str(python), "-m", side.driver, json.dumps(side.specification)]
        made = _within(self._timeout, words, home, self._environment(side, home, python))
        findings: Findings = {"failed": f"no result after {self._timeout:.0f} s"} if made is None else _parse(made)
        findings["wall_seconds"] = time.perf_counter() - began
        findings["others"] = _others(before, (_used(), busy_seconds()))
        return findings

    def _environment(self, side: Side, home: Path, python: Path) -> dict[str, str]:
        own = ("PYTHON", "HF_", "HOOKTRAIN")
        threads = str(side.specification["threads"])
        made = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        if side.peer:  # kernels that a peer compiles stay in its environment, so that this is done once
            compiled = python.parent.parent / "compiled"
            for lock in compiled.rglob("lock"):  # of a run that was interrupted; torch would wait for it for ever
                lock.unlink()
            made["TORCH_EXTENSIONS_DIR"] = str(compiled)
        return made | {
            "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}",  # compilers are found through it
            "PYTHONPATH": str(self._path),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": threads,
            "RAYON_NUM_THREADS": threads,
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(home / "huggingface"),
            "XDG_CACHE_HOME": str(home / "cache"),
        }


def take_turns(
    sides: Sequence[Side], runner: Runner, turns: int, say: Callable[[str], None]
) -> dict[str, list[Findings]]:
    """Run every side ``turns`` times, forth and back through them, so that a drift of the machine hits all alike.

    A side that has failed is not tried again.
    """
    found: dict[str, list[Findings]] = {side.name: [] for side in sides}
    for turn in range(turns):
        for side in sides if turn % 2 == 0 else list(reversed(sides)):
            earlier = found[side.name]
            if earlier and "failed" in earlier[-1]:
                continue
            findings = runner.run(side)
            earlier.append(findings)
            say(f"  {turn + 1}/{turns} {side.name}: {_brief(findings)}")
    return found


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
    return {"failed": f"exit code {made.returncode}: {said[-1][:200] if said else 'no message'}"}


def _used() -> float:
    """Processor seconds of the processes that this one started and waited for."""
    times = os.times()
    return times.children_user + times.children_system


def _others(before: tuple[float, float | None], after: tuple[float, float | None]) -> float | None:
    own = after[0] - before[0]
    if before[1] is None or after[1] is None or own <= 0:
        return None
    return round(max(0.0, after[1] - before[1] - own) / own, 3)


def _brief(findings: Findings) -> str:
    if "failed" in findings:
        return str(findings["failed"])
    others = findings["others"]
    return f"{findings['wall_seconds']:.0f} s" + ("" if others is None else f", others used {others:.0%} of that")
