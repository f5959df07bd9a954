"""The metric of the suite ``dispatch``, its checks and its own kind of target."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from importlib.metadata import entry_points

import attrs

from hooktrain.bench import Case, Check, Comparison, Findings, Measured, Metric, Target

__all__ = ["STEP", "Added", "same_training", "with_own_plugins"]

_APART = 1e-3
"""Largest relative difference of losses and weights; the same arithmetic in another order gives 1e-5."""


def _mean(name: str) -> Callable[[Findings, int], float]:
    # not the median, so that what happens once in some hundred steps (a write, garbage collection) counts
    return lambda findings, warmup: statistics.fmean(findings[name][warmup:])


STEP = Metric(
    "step",
    "µs",
    read=_mean("seconds"),
    scale=1e6,
    undisturbed=Metric("cpu", "µs", read=_mean("cpu_seconds"), scale=1e6),
)
"""Time of a step: the mean over all steps after the warm-up."""


def same_training(ours: Findings, theirs: Findings, warmup: int) -> str:
    """Check that both variants took the same steps: weights and losses agree."""
    if ours["steps"] != theirs["steps"]:
        return f"{ours['steps']} and {theirs['steps']} steps were taken"
    numbers = [[*variant["moved"], variant["loss"]] for variant in (ours, theirs)]
    apart = max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(*numbers, strict=True))
    return "" if apart <= _APART else f"weights or losses are up to {apart:.2%} apart, expected at most {_APART:.2%}"


def with_own_plugins(distributions: frozenset[str]) -> Check:
    """Return a check that hooktrain ran with all plugins of these distributions."""

    def check(ours: Findings, theirs: Findings, warmup: int) -> str:
        points = [(point.dist.name, point.name) for point in entry_points(group="hooktrain") if point.dist is not None]
        missing = distributions - {distribution for distribution, _ in points}
        missing |= {name for at, name in points if at in distributions and name not in ours["plugins"]}
        return f"it ran without {', '.join(sorted(missing))}" if missing else ""

    return check


@attrs.frozen(kw_only=True)
class Added:
    """A comparison without a limit: what each of a peer's plugins adds to a step, per method that is called."""

    name: str
    variant: str
    to: str
    per: int

    def evaluate(self, case: Case, measured: Measured) -> Comparison:
        """Compare; the verdict says whether there is a difference."""
        target = Target(variant=self.variant, to=self.to, kind="difference", per=self.per, at_most=0.0, name=self.name)
        line = target.evaluate(case, measured)
        # without a limit and another variant, tables show the name, which says what the figure is divided by
        verdict = {"passed": "better", "failed": "worse"}.get(line.verdict, line.verdict)
        return attrs.evolve(line, limit="", to="", verdict=verdict)
