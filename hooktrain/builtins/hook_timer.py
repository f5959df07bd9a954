"""Time, device syncs and memory of every call of a hook, charged to its plugin.

Nothing here costs anything unless a timer is made and given to ``PluginHost.measure``, which then puts a function of
its own in the place of each implementation.
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import attrs
import torch
from pluggy import HookImpl

from hooktrain.builtins.device_sync import DeviceSyncs

__all__ = ["Cost", "HookTimer", "hide_frames"]

_clock = time.perf_counter_ns


@attrs.define
class Cost:
    """Cost of a plugin's implementation of a hook, without the hooks that it calls.

    Attributes:
        plugin: its plugin.
        hook: its hook.
        calls: how often it was called.
        nanoseconds: time on the host's clock. Work that it has given to a device runs while others are called, and is
            waited for by whoever reads its result.
        device_syncs: how often it made the host wait for a CUDA device.
        memory: bytes by which the peak of memory grew while it ran: of what torch has allocated on the CUDA device
            where there is one, and of the process elsewhere. All of them together are the growth of that peak.
    """

    plugin: str
    hook: str
    calls: int = 0
    nanoseconds: int = 0
    device_syncs: int = 0
    memory: int = 0


class _Open(threading.local):
    """The calls of one thread that have not returned, and since when the innermost has not been charged."""

    def __init__(self) -> None:
        self.calls: list[Cost] = []
        self.since = 0


class HookTimer:
    """The costs of all implementations that ``PluginHost.measure`` was given for.

    Attributes:
        costs: by plugin and hook, those that were never called included.

    Args:
        read_peak: returns the peak of memory in bytes; the device's where there is one, else the process's.
    """

    def __init__(self, read_peak: Callable[[], int] | None = None) -> None:
        self.costs: dict[tuple[str, str], Cost] = {}
        self._open = _Open()
        self._began = 0
        self._syncs: DeviceSyncs | None = None
        self._use(read_peak or (_device_peak if torch.cuda.is_available() else _process_peak()))

    def _use(self, read_peak: Callable[[], int]) -> None:
        self._read_peak, self._peak = read_peak, read_peak()

    @property
    def seconds(self) -> float:
        """Since the first call."""
        return (_clock() - self._began) / 1e9 if self._began else 0.0

    @property
    def counts_syncs(self) -> bool:
        """Whether waits for the device are counted."""
        return self._syncs is not None and self._syncs.counted

    @property
    def of_device(self) -> bool:
        """Whether ``memory`` is the device's."""
        return self._read_peak is _device_peak

    @property
    def innermost(self) -> Cost | None:
        """The cost that this thread's time is charged to now; None outside of every hook."""
        return self._open.calls[-1] if self._open.calls else None

    def measure(self, hook: str, implementation: HookImpl) -> None:
        """Put a function that charges each call in the place of an implementation's."""
        cost = self.costs.setdefault((implementation.plugin_name, hook), Cost(implementation.plugin_name, hook))
        around = self._wrapping if implementation.wrapper else self.charged
        setattr(implementation, "function", around(cost, implementation.function))  # noqa: B010 - as in guard_loop_hook

    def begin(self, device: torch.device) -> None:
        """The training begins: count the waits for its device."""
        if device.type != "cuda" and self.of_device:
            self._use(_process_peak())
        self._syncs = DeviceSyncs(self._waited, device)
        self._syncs.begin()

    def end(self) -> None:
        """The run is over: count no more device syncs."""
        if self._syncs is not None:
            self._syncs.end()

    def overhead(self, calls: int = 2000) -> float:
        """Seconds that a call takes longer because it is measured, found by measuring what does nothing."""
        measured = HookTimer(self._read_peak).charged(Cost("", ""), _nothing)
        began = _clock()
        for _ in range(calls):
            measured()
        between = _clock()
        for _ in range(calls):
            _nothing()
        return max(0.0, (2 * between - began - _clock()) / calls / 1e9)

    # ------------------------------------------------------------------------------------------------- charging

    def enter(self, cost: Cost) -> None:
        now, calls = _clock(), self._open.calls
        if calls:
            self._charge(calls[-1], now)
        else:
            self._began = self._began or now
            self._peak = self._read_peak()  # what has grown since the last call is nobody's
        calls.append(cost)
        self._open.since = _clock()

    def leave(self) -> None:
        now, calls = _clock(), self._open.calls
        self._charge(calls.pop(), now)
        self._open.since = _clock()

    def _charge(self, cost: Cost, now: int) -> None:
        cost.nanoseconds += now - self._open.since
        peak, before = self._read_peak(), self._peak
        if peak != before:
            self._peak = peak
            cost.memory += max(0, peak - before)  # a plugin may have reset the device's peak

    def _waited(self) -> None:
        calls = self._open.calls
        if calls:
            calls[-1].device_syncs += 1

    def charged(self, cost: Cost, function: Callable[..., Any]) -> Callable[..., Any]:
        enter, leave = self.enter, self.leave

        @functools.wraps(function)
        def measured(*arguments: Any) -> Any:
            cost.calls += 1
            enter(cost)
            try:
                return function(*arguments)
            finally:
                leave()

        return measured

    def _wrapping(self, cost: Cost, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def measured(*arguments: Any) -> Any:
            cost.calls += 1
            return _Wrapping(self, cost, function(*arguments))

        return measured


class _Wrapping:
    """A wrapper's generator, charged for what it does before its yield and after it."""

    def __init__(self, timer: HookTimer, cost: Cost, generator: Any) -> None:
        self._timer, self._cost, self._generator = timer, cost, generator

    def __next__(self) -> Any:
        return self.charged(self._generator.__next__)

    def send(self, value: Any) -> Any:
        return self.charged(self._generator.send, value)

    def throw(self, problem: BaseException) -> Any:
        return self.charged(self._generator.throw, problem)

    def close(self) -> None:
        self._generator.close()

    def __getattr__(self, name: str) -> Any:  # such as gi_code, for pluggy's messages
        return getattr(self._generator, name)

    def charged(self, step: Callable[..., Any], *given: Any) -> Any:
        self._timer.enter(self._cost)
        try:
            return step(*given)
        finally:
            self._timer.leave()


def _nothing() -> None:
    pass


# --------------------------------------------------------------------------------------------------------- memory


def _device_peak() -> int:
    found = torch.cuda.memory_stats_as_nested_dict()  # nothing before the device is used
    return int(found["allocated_bytes"]["all"]["peak"]) if found else 0


@functools.cache
def _process_peak() -> Callable[[], int]:
    """Reads the peak of the process's memory in bytes.

    The cheap way, ``ru_maxrss``, begins on Linux with that of the process that started this one, as a launcher of
    ranks; where it is more than this one's own, that is read from /proc, which takes eight times as long.
    """
    unit, usage, who = 1 if sys.platform == "darwin" else 1024, resource.getrusage, resource.RUSAGE_SELF
    with contextlib.suppress(OSError, ValueError):
        status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
        own = functools.partial(_high_water, status)
        if usage(who).ru_maxrss * unit > own() + 2**20:
            return own
        os.close(status)
    return lambda: usage(who).ru_maxrss * unit


def _high_water(status: int) -> int:
    text = os.pread(status, 4096, 0)
    return int(text[text.index(b"VmHWM:") + 6 :].split(maxsplit=1)[0]) * 1024


# ------------------------------------------------------------------------------------------------------ tracebacks


def hide_frames(exception: BaseException) -> None:
    """Take the lines of this file out of an exception's traceback, and out of those that led to it."""
    found: BaseException | None = exception
    seen: set[int] = set()
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        trace = found.__traceback__
        while trace is not None:
            following = trace.tb_next
            if following is not None and following.tb_frame.f_code.co_filename == __file__:
                trace.tb_next = following.tb_next
            else:
                trace = following
        found = found.__cause__ or found.__context__
