"""Comparison of measurements, with verdicts only where the measurements support one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs

from hooktrain.bench.bootstrap import Interval, difference_of_medians, median_of, ratio_of_medians, rounds_needed
from hooktrain.bench.model import Case, Comparison, Findings, Measured, Metric, tell_new_names

__all__ = ["NOISY", "Check", "Target", "compare_variants", "errors_of", "noise", "verdict_on_change"]

NOISY = 0.05
"""Share of a run's processor time that other programs may use before a timing counts as noisy."""
NARROW = 0.05
"""How far from 1 the interval of a ratio may reach for both variants to count as alike."""
SLIGHT = 0.01
"""How far from 1 a ratio may be to count as no difference, even where the interval excludes 1."""
FEWEST = 4
"""Runs of each variant below which a bootstrap interval is too narrow for a verdict."""

Check = Callable[[Findings, Findings, int], str]
"""Function of a run of each of two variants and the warm-up steps that returns what is wrong; empty when nothing is."""


@tell_new_names
@attrs.frozen(kw_only=True)
class Target:
    """A limit for a variant's ratio to another one, its difference from it, or its own number.

    Attributes:
        variant: name of the variant.
        metric: name of a metric of the case; by default its first.
        at_least, at_most: the limit; give one of them.
        to: name of the other variant; by default the case's baseline.
        kind: ``ratio`` to the other variant, ``difference`` (the variant less the other one), or ``value``: the
            variant's own number.
        per: divisor of a difference or value, such as the number of plugins that it is for.
        unit: unit of a difference or value divided by ``per``; by default the metric's.
        name: name in tables; by default made of the variants' names.
        checks: pairs of variants with a function that must find nothing wrong, because a variant that is fast and wrong
            must not pass.
    """

    variant: str
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
            given = "both" if self.at_most is not None else "neither"
            raise ValueError(f"target for '{self.variant}': given {given}, expected one of at_least and at_most")

    def evaluate(self, case: Case, measured: Measured) -> Comparison:
        """Compare; ``passed`` and ``failed`` need the whole interval on one side of the limit."""
        metric = _metric(case, self.metric)
        to = "" if self.kind == "value" else self.to or case.baseline
        limit = self.at_most if self.at_most is not None else self.at_least
        assert limit is not None
        unit = self.unit or metric.unit
        sign = "<=" if self.at_most is not None else ">="
        shown = f"{sign} {limit:g}" + ("" if self.kind == "ratio" else f" {unit}".rstrip())
        line = _compare(case, measured, metric, self.variant, to, self.kind, self.per)
        line = attrs.evolve(line, name=self.name or (f"{self.variant} to {to}" if to else self.variant), limit=shown)
        if line.kind != "ratio":
            line = attrs.evolve(line, unit=unit)
        problems = [problem for check in self.checks if (problem := _checked(measured, *check, case.warmup_steps))]
        if problems and line.verdict != "not installed":
            return attrs.evolve(line, verdict="error", why="; ".join(problems))
        if line.figure is None:
            return line
        runs = min(len(measured[name]) for name in (self.variant, *filter(None, [to])))
        verdict, why = _against(line.figure, limit, self.at_most is not None, runs, metric.exact)
        return attrs.evolve(line, verdict=verdict, why=why)


def compare_variants(case: Case, measured: Measured) -> list[Comparison]:
    """Evaluate the targets, and compare each variant with the baseline where no target does so already."""
    lines = [target.evaluate(case, measured) for target in case.targets]
    if not case.compare:
        return lines
    known = {(line.variant, line.to, line.metric, line.kind) for line in lines}
    for variant in case.variants:
        for metric in case.metrics:
            pair = (variant.name, case.baseline)
            if pair[0] == pair[1] or (*pair, metric.name, "ratio") in known or not _found(measured, metric, *pair):
                continue
            line = _compare(case, measured, metric, *pair, "ratio", 1.0)
            if line.figure is not None:
                runs = min(len(measured[name]) for name in pair)
                verdict, why = verdict_on_change(line.figure, metric.better, runs, exact=metric.exact)
                line = attrs.evolve(line, verdict=verdict, why=why)
            lines.append(line)
    return lines


def verdict_on_change(
    ratio: Interval, better: str | None, runs: int, *, exact: bool = False, narrow: float = NARROW
) -> tuple[str, str]:
    """Return the verdict on a ratio of two medians, and the reason where it is ``undecided``."""
    ratio = _point(ratio) if exact else ratio
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
    # more rounds would show either that it is not 1, or that it is near 1
    edge = 1.0 if abs(ratio.value - 1) > narrow else 1 + narrow if ratio.high > 1 + narrow else 1 - narrow
    return "undecided", _wide(ratio, edge, runs, "1 and values more than 5% away from it")


def noise(measured: Measured, names: Sequence[str]) -> float:
    """Return the largest share of a run's processor time that other programs used meanwhile."""
    return max((run.get("others") or 0.0 for name in names for run in measured.get(name, ())), default=0.0)


def errors_of(measured: Measured, names: Sequence[str]) -> tuple[str, ...]:
    """Return why variants have no numbers."""
    found = []
    for name in names:
        runs = measured.get(name, ())
        if not runs:
            found.append(f"{name} was not run")
        found += [f"{name}: {run['error']}" for run in runs if "error" in run]
    return tuple(found)


def _metric(case: Case, name: str) -> Metric:
    known = {metric.name: metric for metric in case.metrics}
    if name and name not in known:
        raise ValueError(f"case '{case.name}': a target reads the metric '{name}'; expected one of {', '.join(known)}")
    return known[name] if name else case.metrics[0]


def _compare(
    case: Case, measured: Measured, metric: Metric, variant: str, to: str, kind: str, per: float
) -> Comparison:
    """Compare without a verdict; with ``error`` or ``not installed`` where there are no numbers."""
    names = [variant, *filter(None, [to])]
    line = Comparison(
        name=variant, metric=metric.name, unit=metric.unit, variant=variant, to=to, kind=kind, verdict="error"
    )
    if missing := errors_of(measured, names):
        tried = any("error" in run and "not_installed" not in run for name in names for run in measured.get(name, ()))
        return attrs.evolve(line, verdict="error" if tried else "not installed", why="; ".join(missing))
    try:
        numbers = [[metric.of(run, case.warmup_steps) / per for run in measured[name]] for name in names]
    except (KeyError, ZeroDivisionError, ValueError) as problem:
        found = ", ".join(sorted({key for name in names for run in measured[name] for key in run}))
        return attrs.evolve(line, why=f"{metric.name} cannot be read from the runs ({problem!r}); they have {found}")
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
    """Return a note with the ratio by processor time, which other programs disturb less."""
    quiet = metric.undisturbed
    if quiet is None or not _found(measured, quiet, *names):
        return ()
    numbers = [[quiet.of(run, case.warmup_steps) for run in measured[name]] for name in names]
    return (f"by processor time the ratio is {ratio_of_medians(numbers[0], numbers[1], samples=1).value:.2f}",)


_SIZES = ("peak_mib", "device_peak_mib")


def _against(figure: Interval, limit: float, at_most: bool, runs: int, exact: bool) -> tuple[str, str]:
    figure = _point(figure) if exact else figure
    if figure.low is None or figure.high is None or (runs < FEWEST and not exact):
        return "undecided", _few(runs)
    passed, failed = (
        (figure.high <= limit, figure.low > limit) if at_most else (figure.low >= limit, figure.high < limit)
    )
    if passed or failed:
        return ("passed" if passed else "failed"), ""
    return "undecided", _wide(figure, limit, runs, f"{limit:g}")


def _point(figure: Interval) -> Interval:
    """Return a figure's interval, or that of a single run of an exact metric."""
    return figure if figure.is_known else Interval(figure.value, figure.value, figure.value)


def _few(runs: int) -> str:
    return f"{runs} run{'s' * (runs != 1)} of each variant, expected at least {FEWEST}: --rounds {FEWEST // 2}"


def _wide(figure: Interval, limit: float, runs: int, shown: str) -> str:
    rounds = max(1, runs // 2)
    needed = rounds_needed(figure, limit, rounds)
    hope = (
        "more rounds would hardly help, it is too near"
        if needed is None
        else f"about {needed} rounds (instead of {rounds}) may decide it"
    )
    return f"the interval, {figure.low:.4g} to {figure.high:.4g}, contains {shown}; {hope}"


def _checked(measured: Measured, one: str, other: str, check: Check, warmup_steps: int) -> str:
    missing = errors_of(measured, [one, other])
    try:
        problem = missing[0] if missing else check(measured[one][0], measured[other][0], warmup_steps)
    except Exception as raised:  # hours of measuring are not lost because of it
        problem = f"the check itself failed: {raised!r}"
    return f"{one} and {other}: {problem}" if problem else ""


def _found(measured: Measured, metric: Metric, *variants: str) -> bool:
    runs = [run for variant in variants for run in measured.get(variant, ())]
    return not runs or any("error" in run for run in runs) or all(metric.has(run) for run in runs)
