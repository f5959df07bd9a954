"""What every driver reports, whatever environment it runs in: this module imports nothing but Python's own library.

A driver is a module that is started as ``python -m package.module SPECIFICATION`` in a process of its own, where
SPECIFICATION is JSON, and prints one line of JSON, its findings. Everything else that it or its libraries print goes to
standard error. :func:`drive` does all of that around a function. torch is used where the driver has imported it.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["BEGAN", "PeakMemory", "StepClock", "drive", "gpu", "peak_mib", "restart_peak", "versions"]

BEGAN = "HOOKTRAIN_BENCH_BEGAN"
"""Environment variable: when the process was started, in seconds since the epoch."""
_MIB = 1024
"""KiB in one."""


def gpu() -> Any:
    """``torch.cuda`` where this process has begun to use a GPU, else None; looking does not begin it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized() else None


class StepClock:
    """The time of each optimizer step, its data and its log line included, and what was trained in it.

    On a GPU each step is also timed by events on its current stream, which nobody waits for before the end: the host
    runs ahead of the device, so that only the sum of its own times means something where a step does not wait.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.counts: list[dict[str, float]] = []
        self.events: list[Any]
        self.start()

    def start(self) -> None:
        """Training begins now."""
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
        """A step is over.

        Args:
            counts: what it trained: ``tokens`` (padding excluded), ``computed`` (padding included), ``supervised``
                (with a loss), ``loss`` (their mean).
        """
        self._event()
        wall, cpu = time.perf_counter(), time.process_time()
        self.seconds.append(wall - self._wall)
        self.cpu_seconds.append(cpu - self._cpu)
        self._wall, self._cpu = wall, cpu
        self.counts.append(counts)

    def findings(self) -> dict[str, list[float]]:
        """Lists with one entry for each step: ``seconds``, ``cpu_seconds``, on a GPU ``device_seconds``, the counts."""
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
    """The most memory that this process has held.

    ``ru_maxrss`` will not do on Linux: a process begins with that of the one that started it. ``VmHWM`` does not. Pages
    of mapped files count in it though the system can take them back, so that the anonymous ones are also watched, by a
    thread that looks twenty times a second. Processes that this one starts do not count; the largest is told apart.
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
        """``peak_mib``; ``anonymous_mib``, 0 where unknown; ``child_mib`` of the largest process that has ended."""
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
    """The most memory that this process has held since it began, or since :func:`restart_peak`; 0 where unknown."""
    return _status("VmHWM")


def restart_peak() -> bool:
    """Forget the peak of this process's memory; False where the system cannot (elsewhere than on Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _ru_maxrss(who: int) -> float:
    unit = _MIB if sys.platform == "darwin" else 1  # bytes there, KiB elsewhere
    return resource.getrusage(who).ru_maxrss / unit / _MIB


def _status(name: str) -> float:
    """A field of /proc/self/status in MiB; 0 where there is none."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / _MIB
    except OSError:
        pass
    return 0.0


def versions(*distributions: str) -> dict[str, str]:
    """Versions of Python and of what is installed."""
    found = {"python": platform.python_version()}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def drive(measure: Callable[[dict[str, Any]], dict[str, Any]], *distributions: str) -> None:
    """The main program of a driver: read the specification, measure, print the findings, and end the process.

    Args:
        measure: given the specification, returns findings: numbers, lists with a number for each step, and what else
            is worth keeping. To them are added ``peak_mib``, ``anonymous_mib`` and ``child_mib`` (see
            :class:`PeakMemory`), on a GPU ``device_peak_mib``, ``total_seconds``, ``total_cpu_seconds``, ``versions``.
        distributions: whose versions are reported.
    """
    specification = json.loads(sys.argv[1])
    # the libraries print as they like, from C as well
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    memory = PeakMemory()
    began = time.perf_counter()
    findings = measure(specification)
    cuda = gpu()
    if cuda is not None:
        cuda.synchronize()
        findings.setdefault("device_peak_mib", round(cuda.max_memory_allocated() / 2**20, 1))
    findings = memory.findings() | findings
    findings["total_seconds"] = time.perf_counter() - began
    findings["total_cpu_seconds"] = time.process_time()
    findings["versions"] = versions(*distributions)
    print(json.dumps(findings), file=channel, flush=True)
    channel.close()
    os._exit(0)  # the findings are out; process groups and worker threads of some libraries take seconds to end
