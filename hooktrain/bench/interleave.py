"""Measuring a case: all of its sides take turns, forth and back, so that a drift of the machine hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from hooktrain.bench.in_process import InProcess, isolated
from hooktrain.bench.machine import busy_seconds
from hooktrain.bench.model import Case, Comparison, Findings, Variant
from hooktrain.bench.subprocesses import Runner, others_share, used_by_children
from hooktrain.bench.verdicts import compare_sides

__all__ = ["CaseResult", "run_case", "take_turns"]

_LONG = 1.0
"""Seconds below which the system's clock of processor time, which ticks a hundred times a second, is too coarse."""


@attrs.frozen(kw_only=True)
class CaseResult:
    """What a case gave.

    Attributes:
        suite: its name.
        case: what was measured.
        runs: what was found in each run of each side.
        turns: runs of each side.
        seconds: how long all of that took.
        comparisons: with verdicts, where they can be given.
    """

    suite: str
    case: Case
    runs: Mapping[str, list[Findings]]
    turns: int
    seconds: float
    comparisons: tuple[Comparison, ...]

    @property
    def failed(self) -> bool:
        """Whether a side that is compared has nothing to show."""
        return any(line.verdict == "failed" for line in self.comparisons) or any(
            "failed" in run and "absent" not in run for found in self.runs.values() for run in found
        )


def run_case(suite: str, case: Case, runner: Runner, turns: int, say: Callable[[str], None]) -> CaseResult:
    """Measure a case and compare its sides."""
    began = time.perf_counter()
    runs = take_turns(case, runner, turns, say)
    return CaseResult(
        suite=suite,
        case=case,
        runs=runs,
        turns=turns,
        seconds=time.perf_counter() - began,
        comparisons=tuple(compare_sides(case, runs)),
    )


def take_turns(case: Case, runner: Runner, turns: int, say: Callable[[str], None]) -> dict[str, list[Findings]]:
    """Run every side ``turns`` times, in the order A B B A.

    A side that has failed is not tried again. Runs in this process that are too short to tell what other programs used
    beside each of them are given the share over the whole case.
    """
    runners = {side.name: _run_of(case, side, runner) for side in case.sides}
    found: dict[str, list[Findings]] = {side.name: [] for side in case.sides}
    before = _own_seconds(), busy_seconds()
    for turn in range(turns):
        for side in case.sides if turn % 2 == 0 else reversed(case.sides):
            earlier = found[side.name]
            if earlier and "failed" in earlier[-1]:
                continue
            findings = runners[side.name]()
            earlier.append(findings)
            if _tells(side) or "failed" in findings:
                say(f"  {turn + 1}/{turns} {side.name}: {_brief(findings)}")
    share = others_share(before, (_own_seconds(), busy_seconds()))
    for findings in (findings for of_side in found.values() for findings in of_side):
        findings.setdefault("others", share)
    return found


def _run_of(case: Case, side: Variant, runner: Runner) -> Callable[[], Findings]:
    if side.driver is None and not side.isolated:
        return _timed(InProcess(case, side).run)
    apart = side if side.driver is not None else isolated(case, side)
    return lambda: runner.run(apart)


def _timed(run: Callable[[], Findings]) -> Callable[[], Findings]:
    def timed() -> Findings:
        before = _own_seconds(), busy_seconds()
        began = time.perf_counter()
        findings = run()
        findings["wall_seconds"] = time.perf_counter() - began
        if findings["wall_seconds"] >= _LONG:
            findings["others"] = others_share(before, (_own_seconds(), busy_seconds()))
        return findings

    return timed


def _own_seconds() -> float:
    return time.process_time() + used_by_children()


def _tells(side: Variant) -> bool:
    return side.driver is not None or side.isolated


def _brief(findings: Findings) -> str:
    if "failed" in findings:
        return str(findings["failed"])
    others: Any = findings.get("others")
    return f"{findings['wall_seconds']:.1f} s" + ("" if others is None else f", others used {others:.0%} of that")
