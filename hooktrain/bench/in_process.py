"""Measurement of a function in this process or, as ``python -m hooktrain.bench.in_process``, in one of its own."""

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
"""Seconds that the calls of a run take where ``Case.calls`` is None."""


def measure(function: Callable[[], Mapping[str, Any] | None], calls: int) -> Findings:
    """Call a function and measure it from outside; all figures are for one call.

    Returns:
        ``seconds``, ``cpu_seconds``, on Linux ``peak_mib`` of the process, on a GPU ``device_seconds`` between two
        events and ``device_peak_mib``; and what the last call returned.
    """
    gc.collect()
    cuda = gpu()
    if cuda is not None:
        cuda.synchronize()  # earlier work is not timed
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
        events[1].synchronize()  # the wall time includes the work on the device
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
    """Runs of a variant's function in this process, with a warm-up before the first."""

    def __init__(self, case: Case, variant: Variant) -> None:
        assert variant.function is not None
        self._function, self._prepare = variant.function, variant.prepare
        self._parameters, self._warmup, self._calls = case.parameters, case.warmup, case.calls
        self._warm = False

    def run(self) -> Findings:
        """Measure one run; an exception becomes ``error``."""
        try:
            if not self._warm:
                for _ in range(self._warmup):
                    self._ready()()
                if self._calls is None:
                    self._calls = calls_to_fill(self._ready())
                self._warm = True
            return measure(self._ready(), self._calls or 1)
        except Exception as problem:
            return {"error": f"{type(problem).__name__}: {problem}"}

    def _ready(self) -> Callable[[], Mapping[str, Any] | None]:
        function, parameters = self._function, dict(self._parameters)
        if self._prepare is None:
            return lambda: function(**parameters)
        made = self._prepare(**parameters)
        return lambda: function(made, **parameters)


def calls_to_fill(function: Callable[[], Any], seconds: float = _FILL) -> int:
    """Return how many calls take about that long."""
    calls = 1
    while True:
        began = time.perf_counter()
        for _ in itertools.repeat(None, calls):
            function()
        took = time.perf_counter() - began
        if took >= seconds / 4:
            return max(1, round(calls * seconds / took))
        calls *= 4


def isolated(case: Case, variant: Variant) -> Variant:
    """Return a variant whose driver is this module, which imports the function by name."""
    function: Any = variant.function
    specification = {
        "function": f"{function.__module__}:{function.__qualname__}",
        "parameters": dict(case.parameters),
        "warmup": case.warmup,
        "calls": case.calls,
    }
    return Variant(
        variant.name, driver=__name__, specification=specification, environment=variant.environment, after=variant.after
    )


def _drive(given: dict[str, Any]) -> dict[str, Any]:
    module, _, name = given["function"].partition(":")
    function = getattr(importlib.import_module(module), name)
    case = Case(
        name="isolated",
        variants={name: function},
        parameters=given["parameters"],
        warmup=given["warmup"],
        calls=given["calls"],
    )
    found = InProcess(case, case.variants[0]).run()
    found.pop("peak_mib", None)  # ``drive`` adds that of the whole process
    return found


if __name__ == "__main__":
    drive(_drive, "torch", "hooktrain")
