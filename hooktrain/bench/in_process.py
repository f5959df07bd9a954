"""Measuring calls of a function, in this process or, as ``python -m hooktrain.bench.in_process``, in one of its own."""

from __future__ import annotations

import gc
import importlib
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

from hooktrain.bench.driver import drive, gpu, peak_mib, restart_peak
from hooktrain.bench.model import Case, Findings, Variant

__all__ = ["InProcess", "isolated", "measure"]

_FILL = 0.05
"""Seconds that the calls of one run take when their number is left open."""


def measure(function: Callable[[], Mapping[str, Any] | None], calls: int) -> Findings:
    """Call a function, and measure that from outside; all figures are for one call.

    Returns:
        ``seconds``, ``cpu_seconds``; where the system can tell, ``peak_mib`` of the process meanwhile; on a GPU
        ``device_seconds`` between two events and ``device_peak_mib``; then what the last call returned.
    """
    gc.collect()
    cuda = gpu()
    if cuda is not None:
        cuda.synchronize()  # what was begun before is not ours
        cuda.reset_peak_memory_stats()
        events = [cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
    restarted = restart_peak()
    returned = None
    wall, processor = time.perf_counter(), time.process_time()
    for _ in itertools.repeat(None, calls):
        returned = function()
    if cuda is not None:
        events[1].record()
        events[1].synchronize()  # the wall time is that of the work, not of handing it to the device
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    findings: Findings = {"seconds": wall / calls, "cpu_seconds": processor / calls, "calls": calls}
    if restarted:
        findings["peak_mib"] = round(peak_mib(), 1)
    if cuda is not None:
        findings["device_seconds"] = events[0].elapsed_time(events[1]) / 1000 / calls
    after = gpu()
    if after is not None:  # also where the function was the first to use it
        findings["device_peak_mib"] = round(after.max_memory_allocated() / 2**20, 1)
    return {**findings, **(returned or {})}


class InProcess:
    """Runs a side's function in this process, warmed up once before its first run."""

    def __init__(self, case: Case, side: Variant) -> None:
        assert side.function is not None
        self._function, self._prepare = side.function, side.prepare
        self._parameters, self._warmup, self._calls = case.parameters, case.warmup, case.calls
        self._warm = False

    def run(self) -> Findings:
        """Measure one run; a function that raises has ``failed``."""
        try:
            if not self._warm:
                for _ in range(self._warmup):
                    self._ready()()
                if self._calls is None:
                    self._calls = calls_to_fill(self._ready())
                self._warm = True
            return measure(self._ready(), self._calls or 1)
        except Exception as problem:
            return {"failed": f"{type(problem).__name__}: {problem}"[:300]}

    def _ready(self) -> Callable[[], Mapping[str, Any] | None]:
        function, parameters = self._function, dict(self._parameters)
        if self._prepare is None:
            return lambda: function(**parameters)
        made = self._prepare(**parameters)
        return lambda: function(made, **parameters)


def calls_to_fill(function: Callable[[], Any], seconds: float = _FILL) -> int:
    """How many calls take about that long."""
    calls = 1
    while True:
        began = time.perf_counter()
        for _ in itertools.repeat(None, calls):
            function()
        took = time.perf_counter() - began
        if took >= seconds / 4:
            return max(1, round(calls * seconds / took))
        calls *= 4


def isolated(case: Case, side: Variant) -> Variant:
    """The side as one with a driver: this module, which imports the function by name."""
    function: Any = side.function
    specification = {
        "function": f"{function.__module__}:{function.__qualname__}",
        "parameters": dict(case.parameters),
        "warmup": case.warmup,
        "calls": case.calls,
    }
    return Variant(
        side.name, driver=__name__, specification=specification, environment=side.environment, after=side.after
    )


def _drive(given: dict[str, Any]) -> dict[str, Any]:
    module, _, name = given["function"].partition(":")
    function = getattr(importlib.import_module(module), name)
    case = Case(
        name="isolated",
        sides={name: function},
        parameters=given["parameters"],
        warmup=given["warmup"],
        calls=given["calls"],
    )
    found = InProcess(case, case.sides[0]).run()
    if "failed" in found:
        raise SystemExit(found["failed"])
    found.pop("peak_mib", None)  # of the process from its beginning, which ``drive`` adds
    return found


if __name__ == "__main__":
    drive(_drive, "torch", "hooktrain")
