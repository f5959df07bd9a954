"""What is read off the runs, and what must hold of two of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from importlib.metadata import entry_points

import attrs

from hooktrain.bench import Case, Check, Comparison, Findings, Measured, Metric, Target

__all__ = ["STEP", "Added", "same_training", "with_own_plugins"]

_APART = 1e-3
"""How far two sides' losses and weights may be apart, as a share; the same arithmetic in another order is 1e-5."""


def _mean(name: str) -> Callable[[Findings, int], float]:
    # not the median: what happens once in some hundred steps (a file is written, garbage collected) belongs to a step
    return lambda findings, warmup: statistics.fmean(findings[name][warmup:])


STEP = Metric(
    "step",
    "µs",
    read=_mean("seconds"),
    scale=1e6,
    undisturbed=Metric("cpu", "µs", read=_mean("cpu_seconds"), scale=1e6),
)
"""The time of a step: the mean over all that are not warm-up."""


def same_training(ours: Findings, theirs: Findings, warmup: int) -> str:
    """Both sides took the same steps: the layer has moved as far, and is as good on rows of its own."""
    if ours["steps"] != theirs["steps"]:
        return f"{ours['steps']} and {theirs['steps']} steps were taken"
    numbers = [[*side["moved"], side["loss"]] for side in (ours, theirs)]
    apart = max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(*numbers, strict=True))
    return "" if apart <= _APART else f"weights or losses are up to {apart:.2%} apart, expected at most {_APART:.2%}"


def with_own_plugins(distributions: frozenset[str]) -> Check:
    """hooktrain ran with all plugins of these distributions."""

    def check(ours: Findings, theirs: Findings, warmup: int) -> str:
        points = [(point.dist.name, point.name) for point in entry_points(group="hooktrain") if point.dist is not None]
        missing = distributions - {distribution for distribution, _ in points}
        missing |= {name for at, name in points if at in distributions and name not in ours["plugins"]}
        return f"it ran without {', '.join(sorted(missing))}" if missing else ""

    return check


@attrs.frozen(kw_only=True)
class Added:
    """What each of a peer's plugins adds to a step by each method that is called; nothing is to be reached."""

    name: str
    side: str
    to: str
    per: int

    def judge(self, case: Case, measured: Measured) -> Comparison:
        """The difference, and whether there is one."""
        target = Target(side=self.side, to=self.to, kind="difference", per=self.per, at_most=0.0, name=self.name)
        line = target.judge(case, measured)
        # without a limit and another side a table shows the name, which says what the figure is divided by
        verdict = {"reached": "better", "missed": "worse"}.get(line.verdict, line.verdict)
        return attrs.evolve(line, limit="", to="", verdict=verdict)
