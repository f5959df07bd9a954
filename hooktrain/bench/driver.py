"""Tools for drivers, in hooktrain's environment or a peer's: this module imports only the standard library.

A driver is a module that runs as ``python -m package.module SPECIFICATION`` in a process of its own, where
SPECIFICATION is JSON, and prints one line of JSON, its findings. Everything else that it or its libraries print goes to
the standard error. :func:`drive` does this for a function. torch is used where the driver has imported it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hooktrain.errors import HooktrainError

__all__ = ["BEGAN", "PeakMemory", "StepClock", "drive", "gpu", "peak_mib", "restart_peak", "versions"]

BEGAN = "HOOKTRAIN_BENCH_BEGAN"
"""Environment variable with the time at which the process was started, in seconds since the epoch."""
_MIB = 1024
"""KiB in a MiB."""


def gpu() -> Any:
    """Return ``torch.cuda`` if this process uses a GPU already, else None."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized() else None


class StepClock:
    """Times each optimizer step, including its data and its log line, and counts what it trained.

    On a GPU, events on the current stream time each step as well. No step waits for them, because the host runs ahead
    of the device: of its own times, only their sum is meaningful then.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.counts: list[dict[str, float]] = []
        self.events: list[Any]
        self.start()

    def start(self) -> None:
        """Start the first step."""
        self.events = []
        self._event()
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def _event(self) -> None:
        cuda = gpu()
        if cuda is not None:
            event = cuda.Event(enable_timing=True)
            event.record()
            self.events.append(event)

    def step(self, **counts: float) -> None:
        """End a step, and start the next.

        Args:
            counts: what the step trained: ``tokens`` (without padding), ``computed`` (with padding), ``supervised``
                (with a loss), ``loss`` (their mean).
        """
        self._event()
        wall, cpu = time.perf_counter(), time.process_time()
        self.seconds.append(wall - self._wall)
        self.cpu_seconds.append(cpu - self._cpu)
        self._wall, self._cpu = wall, cpu
        self.counts.append(counts)

    def findings(self) -> dict[str, list[float]]:
        """Return lists with an entry per step: ``seconds``, ``cpu_seconds``, counts, on a GPU ``device_seconds``."""
        names = self.counts[0] if self.counts else {}
        found = {
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            **{name: [count[name] for count in self.counts] for name in names},
        }
        if len(self.events) == len(self.seconds) + 1:
            self.events[-1].synchronize()
            pairs = zip(self.events, self.events[1:], strict=False)
            found["device_seconds"] = [before.elapsed_time(after) / 1000 for before, after in pairs]
        return found


class PeakMemory:
    """Measures the peak memory of this process.

    On Linux ``ru_maxrss`` starts with that of the parent process, so ``VmHWM`` is read. It includes pages of mapped
    files, which the system can take back; a thread that looks twenty times a second measures anonymous pages as well.
    Child processes are not included; the largest is reported separately.
    """

    def __init__(self) -> None:
        self.anonymous_mib = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            self.anonymous_mib = max(self.anonymous_mib, _status("RssAnon"))

    def findings(self) -> dict[str, float]:
        """Return ``peak_mib``, ``anonymous_mib`` (0 where unknown), and ``child_mib`` of the largest ended child."""
        self._ended.set()
        self._thread.join()
        own, child = (_ru_maxrss(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        found = {
            "peak_mib": _status("VmHWM") or own,
            "anonymous_mib": max(self.anonymous_mib, _status("RssAnon")),
            "child_mib": child,
        }
        return {name: round(value, 1) for name, value in found.items()}


def peak_mib() -> float:
    """Return this process's peak memory since its start, or since :func:`restart_peak`; 0 where unknown."""
    return _status("VmHWM")


def restart_peak() -> bool:
    """Reset this process's peak memory; return False where the system cannot (it can on Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _ru_maxrss(who: int) -> float:
    unit = _MIB if sys.platform == "darwin" else 1  # macOS counts bytes, Linux KiB
    return resource.getrusage(who).ru_maxrss / unit / _MIB


def _status(name: str) -> float:
    """Return a field of /proc/self/status in MiB; 0 where there is none."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / _MIB
    except OSError:
        pass
    return 0.0


def versions(*distributions: str) -> dict[str, str]:
    """Return the versions of Python and of those of the distributions that are installed."""
    found = {"python": platform.python_version()}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def drive(measure: Callable[[dict[str, Any]], dict[str, Any]], *distributions: str) -> None:
    """Run a driver's main program: read the specification, measure, print the findings, and exit.

    Args:
        measure: function of the specification that returns findings: numbers, lists with a number per step, and
            anything else for the record. Added to them are ``peak_mib``, ``anonymous_mib`` and ``child_mib`` (see
            :class:`PeakMemory`), on a GPU ``device_peak_mib``, ``total_seconds``, ``total_cpu_seconds``, ``versions``.
            An exception becomes ``error``.
        distributions: distributions whose versions are reported.
    """
    specification = json.loads(sys.argv[1])
    # libraries print to the standard output, from C as well
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    memory = PeakMemory()
    began = time.perf_counter()
    try:
        findings = measure(specification)
        cuda = gpu()
        if cuda is not None:
            cuda.synchronize()
            findings.setdefault("device_peak_mib", round(cuda.max_memory_allocated() / 2**20, 1))
    except Exception as problem:
        if not isinstance(problem, HooktrainError):  # which says all there is to say
            traceback.print_exc()
        findings = {"error": f"{type(problem).__name__}: {problem}"}
    findings = memory.findings() | findings
    findings["total_seconds"] = time.perf_counter() - began
    findings["total_cpu_seconds"] = time.process_time()
    findings["versions"] = versions(*distributions)
    print(json.dumps(findings), file=channel, flush=True)
    channel.close()
    os._exit(0)  # process groups and worker threads of some libraries take seconds to end
