"""Comparing what was measured: one side with another or with a limit, or memory with a straight line."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

import attrs

from benchmarks.ratios import Ratio, ratio_of_medians
from benchmarks.running import Findings
from benchmarks.sft.metrics import Check, held, peak, tokens_per_cpu_second, tokens_per_second

__all__ = ["Case", "Growth", "Row"]

Measured = Mapping[str, Sequence[Findings]]
"""What was found in each run of each side."""


@attrs.frozen(kw_only=True)
class Row:
    """A line of the table.

    Attributes:
        ours, theirs: medians over the runs, in ``unit``; None where there is none.
        ratio: of ours to theirs; for a case without theirs, ours to the target.
        reached: None where nothing could be measured.
        cpu_ratio: the ratio by processor time instead, where steps were timed.
        noisy: whether other programs took part of the machine, so that timings are worth little.
        notes: why something is not there or not reached, and what to know.
    """

    case: str
    title: str
    unit: str
    ours: float | None = None
    theirs: float | None = None
    ratio: Ratio | None = None
    target: str
    reached: bool | None = None
    cpu_ratio: float | None = None
    noisy: bool = False
    notes: tuple[str, ...] = ()


_QUIET = 0.05
"""Share of the processor time that others may use before a timing counts as noisy."""


@attrs.frozen(kw_only=True)
class Case:
    """One side against another, or against a number.

    Attributes:
        ours, theirs: names of sides; without ``theirs`` the limit is of ``unit`` itself.
        metric: the number of a run.
        at_least, at_most: the ratio (or number) to reach; one of them.
        checks: pairs of sides that must agree, and how.
    """

    name: str
    title: str
    group: str
    ours: str
    theirs: str | None = None
    metric: Callable[[Findings, int], float] = tokens_per_second
    unit: str = "tok/s"
    at_least: float | None = None
    at_most: float | None = None
    checks: tuple[tuple[str, str, Check], ...] = ()

    @property
    def sides(self) -> set[str]:
        """All that must be run."""
        return {self.ours, *filter(None, [self.theirs]), *(name for pair in self.checks for name in pair[:2])}

    def row(self, measured: Measured, warmup: int) -> Row:
        """Compare what was measured."""
        compared = [self.ours, *filter(None, [self.theirs])]
        relation = f">= {self.at_least:.2f}" if self.at_least is not None else f"<= {self.at_most:.2f}"
        target = relation if self.theirs else f"{relation} {self.unit}"
        row = Row(case=self.name, title=self.title, unit=self.unit, target=target)
        if failures := _failures(measured, compared):
            return attrs.evolve(row, notes=failures)
        numbers = [[self.metric(run, warmup) for run in measured[side]] for side in compared]
        ours, *theirs = (statistics.median(found) for found in numbers)
        ratio = ratio_of_medians(numbers[0], numbers[1]) if theirs else None
        problems = [problem for problem in (self._check(measured, *check, warmup) for check in self.checks) if problem]
        row = attrs.evolve(
            row,
            ours=ours,
            theirs=theirs[0] if theirs else None,
            ratio=ratio,
            reached=self._reaches(ours if ratio is None else ratio.value) and not problems,
            noisy=self.metric not in (peak, held) and _noise(measured, compared) > _QUIET,
            notes=tuple(problems),
        )
        return self._with_processor_time(row, measured, compared, warmup)

    def _reaches(self, value: float) -> bool:
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)

    def _with_processor_time(self, row: Row, measured: Measured, compared: Sequence[str], warmup: int) -> Row:
        if self.metric is not tokens_per_second or row.ratio is None:
            return row
        one, other = ([tokens_per_cpu_second(run, warmup) for run in measured[side]] for side in compared)
        ratio = ratio_of_medians(one, other)
        notes = (*row.notes, f"by processor time the ratio is {ratio.value:.2f}") if row.noisy else row.notes
        return attrs.evolve(row, cpu_ratio=ratio.value, notes=notes)

    @staticmethod
    def _check(measured: Measured, one: str, other: str, check: Check, warmup: int) -> str:
        failures = _failures(measured, [one, other])
        problem = failures[0] if failures else check(measured[one][0], measured[other][0], warmup)
        return f"{one} and {other}: {problem}" if problem else ""


@attrs.frozen(kw_only=True)
class Growth:
    """Whether memory grows with the length of a row along a straight line.

    The peak at the longest rows is compared with what a line through the shorter ones foretells.
    """

    name: str
    title: str
    group: str
    prefix: str
    unit: str = "GiB"
    at_most: float = 1.05

    def has(self, side: str) -> bool:
        """Whether a side is one of the lengths."""
        return side.startswith(self.prefix)

    def row(self, measured: Measured, warmup: int) -> Row:
        """Fit the line and compare."""
        row = Row(case=self.name, title=self.title, unit=self.unit, target=f"<= {self.at_most:.2f}")
        names = [name for name in measured if self.has(name)]
        failures = _failures(measured, names)
        if failures:
            return attrs.evolve(row, notes=failures)
        points = sorted(
            (sum(measured[name][0]["tokens"]), statistics.median(peak(found, 0) for found in measured[name]))
            for name in names
        )
        *shorter, (longest, reached) = points
        slope, start = statistics.linear_regression(*zip(*shorter, strict=True))
        foretold = start + slope * longest
        sizes = ", ".join(f"{size:.2f} at {tokens:,.0f}" for tokens, size in points)
        notes = (f"GiB by tokens: {sizes}; {slope * 1024 * 1000:.0f} MiB for 1,000 tokens more",)
        return attrs.evolve(
            row,
            ours=reached,
            theirs=foretold,
            ratio=Ratio(reached / foretold, None, None),
            reached=reached / foretold <= self.at_most,
            notes=notes,
        )


def _failures(measured: Measured, names: Sequence[str]) -> tuple[str, ...]:
    found = []
    for name in names:
        runs = measured.get(name, ())
        if not runs:
            found.append(f"{name} was not run")
        found += [f"{name}: {run['failed']}" for run in runs if "failed" in run]
    return tuple(found)


def _noise(measured: Measured, names: Sequence[str]) -> float:
    """The largest share of a run's processor time that other programs used beside it."""
    return max((run.get("others") or 0.0 for name in names for run in measured.get(name, ())), default=0.0)
