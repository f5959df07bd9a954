"""Runs of a case's variants, interleaved in the order A B B A, so that a change of the machine's speed affects all."""

from __future__ import annotations

import time
from collections.abc import Callable

from hooktrain.bench.in_process import InProcess, isolated
from hooktrain.bench.machine import busy_seconds
from hooktrain.bench.model import Case, Findings, Variant
from hooktrain.bench.subprocesses import Runner, others_share, used_by_children

__all__ = ["run_variants"]

_LONG = 1.0
"""Seconds below which the system's processor time, which counts hundredths of a second, is too coarse."""


def run_variants(case: Case, runner: Runner, count: int, say: Callable[[str], None]) -> dict[str, list[Findings]]:
    """Run each variant ``count`` times, in the order A B B A.

    A variant that has failed is not run again. Runs in this process that are too short to measure what other programs
    used meanwhile get the share over the whole case.
    """
    runs = {variant.name: _run_of(case, variant, runner) for variant in case.variants}
    found: dict[str, list[Findings]] = {variant.name: [] for variant in case.variants}
    before = _own_seconds(), busy_seconds()
    for number in range(count):
        for variant in case.variants if number % 2 == 0 else reversed(case.variants):
            earlier = found[variant.name]
            if earlier and "error" in earlier[-1]:
                continue
            findings = runs[variant.name]()
            earlier.append(findings)
            if variant.has_process or "error" in findings:
                say(f"  {number + 1}/{count} {variant.name}: {_brief(findings)}")
    share = others_share(before, (_own_seconds(), busy_seconds()))
    for findings in (findings for of_variant in found.values() for findings in of_variant):
        findings.setdefault("others", share)
    return found


def _run_of(case: Case, variant: Variant, runner: Runner) -> Callable[[], Findings]:
    if not variant.has_process:
        return _timed(InProcess(case, variant).run)
    driven = variant if variant.driver is not None else isolated(case, variant)
    return lambda: runner.run(driven)


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


def _brief(findings: Findings) -> str:
    if "error" in findings:
        return str(findings["error"]).partition("\n")[0]
    others = findings.get("others")
    return f"{findings['wall_seconds']:.1f} s" + ("" if others is None else f", other programs used {others:.0%} of it")
