"""Runs of functions in this process, and the clocks that time them."""

from __future__ import annotations

import pytest

from hooktrain.bench import SECONDS, Case, Metric, Settings, Suite, Variant, run_suites
from hooktrain.bench.driver import StepClock
from hooktrain.bench.in_process import measure
from hooktrain.bench.machine import busy_seconds, describe


class Clock:
    """The part of the module ``time`` that measuring needs: a clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def perf_counter(self) -> float:
        return self.now

    process_time = perf_counter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("hooktrain.bench.in_process.time", made)
    return made


def test_variants_are_interleaved_after_a_warm_up():
    order: list[str] = []
    variants = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    (line,) = run_suites([Suite(name="s", summary="", cases=[Case(name="c", variants=variants)])], Settings(rounds=2))
    assert order == list("aabbbaabba"), "each once before its first run, then A B B A A B B A"
    assert len(line["runs"]["a"]) == 4 and line["settings"]["runs_per_variant"] == 4


def test_calls_fill_a_run_and_figures_are_for_one(clock):
    case = Case(name="c", variants={"short": lambda: clock.advance(1e-5)}, calls=None)
    (line,) = run_suites([Suite(name="s", summary="", cases=[case])], Settings(rounds=1))
    (first, _) = line["runs"]["short"]
    assert first["calls"] == 5000, "50 ms"
    assert first["seconds"] == first["cpu_seconds"] == pytest.approx(1e-5)


def test_prepare_is_not_timed_and_called_first(clock):
    def prepare(n):
        clock.advance(100)
        return 40

    def measured(made, n):
        clock.advance(2)
        return {"got": made + n}

    variant = Variant("s", measured, prepare=prepare)
    case = Case(name="c", parameters={"n": 2}, variants=[variant], metrics=[SECONDS, Metric("got")])
    (line,) = run_suites([Suite(name="s", summary="", cases=[case])], Settings(rounds=1))
    assert line["variants"]["s"]["values"] == {"got": [42, 42], "seconds": [2, 2]}


def test_a_clock_keeps_each_step():
    clock = StepClock()
    clock.step(tokens=5, loss=1.0)
    clock.step(tokens=7, loss=0.5)
    findings = clock.findings()
    assert findings["tokens"] == [5, 7] and findings["loss"] == [1.0, 0.5]
    assert len(findings["seconds"]) == 2 and min(findings["seconds"]) >= 0


class StandIn:
    """The used part of ``torch.cuda``: a device whose clock advances by 20 ms with each piece of work."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def Event(self, enable_timing):
        assert enable_timing
        device = self

        class Event:
            def record(self):
                self.at = device.now
                device.calls.append("record")

            def synchronize(self):
                device.calls.append("wait")

            def elapsed_time(self, other):
                return other.at - self.at

        return Event()

    def work(self):
        self.now += 20.0
        self.calls.append("work")

    def synchronize(self):
        self.calls.append("wait")

    def reset_peak_memory_stats(self):
        self.calls.append("forget")

    def max_memory_allocated(self):
        return 3 * 2**20


def test_on_a_device_calls_are_timed_by_events(monkeypatch):
    device = StandIn()
    monkeypatch.setattr("hooktrain.bench.in_process.gpu", lambda: device)
    found = measure(device.work, calls=2)
    assert device.calls == ["wait", "forget", "record", "work", "work", "record", "wait"]
    assert (found["device_seconds"], found["device_peak_mib"]) == (0.02, 3.0)


def test_on_a_device_steps_are_timed_by_events_without_a_sync_before_the_end(monkeypatch):
    device = StandIn()
    monkeypatch.setattr("hooktrain.bench.driver.gpu", lambda: device)
    clock = StepClock()
    clock.start()  # as drivers do once everything is loaded
    for _ in range(3):
        device.work()
        clock.step()
    assert "wait" not in device.calls
    assert clock.findings()["device_seconds"] == [0.02, 0.02, 0.02]


def test_the_machine_describes_itself():
    assert describe()["cores"] >= 1 and describe()["processor"]
    before = busy_seconds()
    if before is not None:
        sum(range(3_000_000))
        assert busy_seconds() >= before
