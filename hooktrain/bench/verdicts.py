"""Comparing what was measured, and refusing a verdict that the measurements do not bear."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from hooktrain.bench.bootstrap import Interval, difference_of_medians, median_of, ratio_of_medians, rounds_needed
from hooktrain.bench.model import Case, Comparison, Findings, Measured, Metric

__all__ = ["NOISY", "Check", "Target", "compare_sides", "failures", "noise", "verdict_on_change"]

NOISY = 0.05
"""Share of a run's processor time that other programs may use before a timing counts as noisy."""
NARROW = 0.05
"""How far from 1 the interval of a ratio may reach for both sides to count as alike."""
SLIGHT = 0.01
"""How far from 1 a ratio may be for the difference to be nothing that anybody minds."""
FEWEST = 4
"""Runs of each side without which a bootstrap interval is too hopeful for a verdict."""

Check = Callable[[Findings, Findings, int], str]
"""Given a run of each side and the warm-up steps, says what is wrong; empty when nothing is."""


@attrs.frozen(kw_only=True)
class Target:
    """A limit for the ratio or difference of a side to another, or for the side's own number.

    Attributes:
        side: whose number it is.
        metric: of the case's, by name; its first when left out.
        at_least, at_most: the limit; one of them.
        to: the other side; the case's baseline when left out.
        kind: ``ratio`` to the other side, ``difference`` (the side less the other one), or ``value``: the side alone.
        per: what a difference or value is divided by before it is compared, such as the number of plugins it is for.
        unit: of a difference or value so divided; the metric's when left out.
        name: what the line is called; made of the sides when left out.
        checks: pairs of sides that must agree, and how; a side that is fast and wrong has reached nothing.
    """

    side: str
    metric: str = ""
    at_least: float | None = None
    at_most: float | None = None
    to: str = ""
    kind: str = attrs.field(default="ratio", validator=attrs.validators.in_(("ratio", "difference", "value")))
    per: float = 1.0
    unit: str = ""
    name: str = ""
    checks: tuple[tuple[str, str, Check], ...] = ()

    def __attrs_post_init__(self) -> None:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"target for '{self.side}': expected one of at_least and at_most")

    def judge(self, case: Case, measured: Measured) -> Comparison:
        """Compare; a verdict only where the whole interval lies on one side of the limit."""
        metric = _metric(case, self.metric)
        to = "" if self.kind == "value" else self.to or case.baseline
        limit = self.at_most if self.at_most is not None else self.at_least
        assert limit is not None
        unit = self.unit or metric.unit
        sign = "<=" if self.at_most is not None else ">="
        shown = f"{sign} {limit:g}" + ("" if self.kind == "ratio" else f" {unit}".rstrip())
        line = _compare(case, measured, metric, self.side, to, self.kind, self.per)
        line = attrs.evolve(line, name=self.name or (f"{self.side} to {to}" if to else self.side), limit=shown)
        if line.kind != "ratio":
            line = attrs.evolve(line, unit=unit)
        problems = [problem for check in self.checks if (problem := _checked(measured, *check, case.warmup_steps))]
        if problems and line.verdict != "absent":
            return attrs.evolve(line, verdict="failed", why="; ".join(problems))
        if line.figure is None:
            return line
        runs = min(len(measured[name]) for name in (self.side, *filter(None, [to])))
        verdict, why = _against(line.figure, limit, self.at_most is not None, runs, metric.exact)
        return attrs.evolve(line, verdict=verdict, why=why)


def compare_sides(case: Case, measured: Measured) -> list[Comparison]:
    """The targets' lines; then every side's with the baseline, unless a target has said as much."""
    judged = [target.judge(case, measured) for target in case.targets]
    if not case.compare:
        return judged
    told = {(line.side, line.to, line.metric, line.kind) for line in judged}
    for side in case.sides:
        for metric in case.metrics:
            of = (side.name, case.baseline, metric.name, "ratio")
            if side.name == case.baseline or of in told or not _found(measured, metric, side.name, case.baseline):
                continue
            line = _compare(case, measured, metric, side.name, case.baseline, "ratio", 1.0)
            if line.figure is not None:
                runs = min(len(measured[side.name]), len(measured[case.baseline]))
                verdict, why = verdict_on_change(line.figure, metric.better, runs, exact=metric.exact)
                line = attrs.evolve(line, verdict=verdict, why=why)
            judged.append(line)
    return judged


def verdict_on_change(
    ratio: Interval, better: str | None, runs: int, *, exact: bool = False, narrow: float = NARROW
) -> tuple[str, str]:
    """Which of two is better by a ratio of the one to the other, and why it cannot be said where it cannot."""
    if exact and not ratio.is_known:
        ratio = Interval(ratio.value, ratio.value, ratio.value)
    if ratio.low is None or ratio.high is None or (runs < FEWEST and not exact):
        return "undecided", _few(runs)
    if ratio.low >= 1 - SLIGHT and ratio.high <= 1 + SLIGHT:
        return "alike", ""
    if ratio.low > 1 or ratio.high < 1:
        if better is None:
            return "differs", ""
        return ("better" if (ratio.value > 1) == (better == "higher") else "worse"), ""
    if 1 - narrow <= ratio.low and ratio.high <= 1 + narrow:
        return "alike", ""
    # either it is shown to be other than 1, or to be near it
    edge = 1.0 if abs(ratio.value - 1) > narrow else 1 + narrow if ratio.high > 1 + narrow else 1 - narrow
    return "undecided", _wide(ratio, edge, runs, "1 and more than 5% beside it")


def noise(measured: Measured, names: Sequence[str]) -> float:
    """The largest share of a run's processor time that other programs used beside it."""
    return max((run.get("others") or 0.0 for name in names for run in measured.get(name, ())), default=0.0)


def failures(measured: Measured, names: Sequence[str]) -> tuple[str, ...]:
    """Why sides have no numbers."""
    found = []
    for name in names:
        runs = measured.get(name, ())
        if not runs:
            found.append(f"{name} was not run")
        found += [f"{name}: {run['failed']}" for run in runs if "failed" in run]
    return tuple(found)


def _metric(case: Case, name: str) -> Metric:
    known = {metric.name: metric for metric in case.metrics}
    if name and name not in known:
        raise ValueError(f"case '{case.name}': a target reads the metric '{name}'; it has {', '.join(known)}")
    return known[name] if name else case.metrics[0]


def _compare(case: Case, measured: Measured, metric: Metric, side: str, to: str, kind: str, per: float) -> Comparison:
    """A line without a verdict, or with ``failed``."""
    names = [side, *filter(None, [to])]
    line = Comparison(name=side, metric=metric.name, unit=metric.unit, side=side, to=to, kind=kind, verdict="failed")
    if missing := failures(measured, names):
        tried = any("failed" in run and "absent" not in run for name in names for run in measured.get(name, ()))
        return attrs.evolve(line, verdict="failed" if tried else "absent", why="; ".join(missing))
    try:
        numbers = [[metric.of(run, case.warmup_steps) / per for run in measured[name]] for name in names]
    except (KeyError, ZeroDivisionError, ValueError) as problem:
        found = ", ".join(sorted({key for name in names for run in measured[name] for key in run}))
        return attrs.evolve(line, why=f"{metric.name} cannot be read off the runs ({problem!r}); they have {found}")
    if kind == "ratio":
        numbers = [[number * per for number in found] for found in numbers]
        figure = ratio_of_medians(numbers[0], numbers[1])
    elif kind == "difference":
        figure = difference_of_medians(numbers[0], numbers[1])
    else:
        figure = median_of(numbers[0])
    noisy = not metric.exact and metric.name not in _SIZES and noise(measured, names) > NOISY
    medians = [median_of(found, samples=1).value for found in numbers]
    return attrs.evolve(
        line,
        ours=medians[0],
        theirs=medians[1] if to else None,
        figure=figure,
        verdict="undecided",
        noisy=noisy,
        notes=_by_processor_time(case, measured, metric, names) if noisy and kind == "ratio" else (),
    )


def _by_processor_time(case: Case, measured: Measured, metric: Metric, names: Sequence[str]) -> tuple[str, ...]:
    """The ratio that other programs disturb less; but threads that wait for each other may spin."""
    quiet = metric.undisturbed
    if quiet is None or not _found(measured, quiet, *names):
        return ()
    numbers = [[quiet.of(run, case.warmup_steps) for run in measured[name]] for name in names]
    return (f"by processor time the ratio is {ratio_of_medians(numbers[0], numbers[1], samples=1).value:.2f}",)


_SIZES = ("peak_mib", "device_peak_mib")


def _against(figure: Interval, limit: float, at_most: bool, runs: int, exact: bool) -> tuple[str, str]:
    if exact and not figure.is_known:
        figure = Interval(figure.value, figure.value, figure.value)
    if figure.low is None or figure.high is None or (runs < FEWEST and not exact):
        return "undecided", _few(runs)
    reached, missed = (
        (figure.high <= limit, figure.low > limit) if at_most else (figure.low >= limit, figure.high < limit)
    )
    if reached or missed:
        return ("reached" if reached else "missed"), ""
    return "undecided", _wide(figure, limit, runs, f"{limit:g}")


def _few(runs: int) -> str:
    return (
        f"{runs} run{'s' * (runs != 1)} of each side say too little about the noise; {FEWEST // 2} rounds are the least"
    )


def _wide(figure: Interval, limit: float, runs: int, shown: str) -> str:
    rounds = max(1, runs // 2)
    needed = rounds_needed(figure, limit, rounds)
    hope = (
        "more rounds hardly help: it lies too near"
        if needed is None
        else f"about {needed} rounds (these were {rounds}) might do"
    )
    return f"the interval, {figure.low:.4g} to {figure.high:.4g}, holds {shown}; {hope}"


def _checked(measured: Mapping[str, Any], one: str, other: str, check: Check, warmup_steps: int) -> str:
    missing = failures(measured, [one, other])
    try:
        problem = missing[0] if missing else check(measured[one][0], measured[other][0], warmup_steps)
    except Exception as raised:  # hours of measuring are not lost because of it
        problem = f"the check itself failed: {raised!r}"
    return f"{one} and {other}: {problem}" if problem else ""


def _found(measured: Measured, metric: Metric, *sides: str) -> bool:
    runs = [run for side in sides for run in measured.get(side, ())]
    return not runs or any("failed" in run for run in runs) or all(metric.has(run) for run in runs)
