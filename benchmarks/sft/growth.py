"""Whether memory grows along a straight line, which no comparison of two sides can tell."""

from __future__ import annotations

import statistics

import attrs

from benchmarks.sft.metrics import PEAK
from hooktrain.bench import Case, Comparison, Interval, Measured
from hooktrain.bench.verdicts import failures

__all__ = ["Growth"]


@attrs.frozen(kw_only=True)
class Growth:
    """Whether memory grows with the length of a row along a straight line.

    The peak at the longest rows is compared with what a line through the shorter ones foretells.

    Attributes:
        name: of the line.
        prefix: of the sides' names.
        at_most: times what is foretold.
    """

    name: str
    prefix: str
    at_most: float = 1.05

    def judge(self, case: Case, measured: Measured) -> Comparison:
        """Fit the line and compare."""
        names = [name for name in measured if name.startswith(self.prefix)]
        line = Comparison(
            name=self.name,
            metric=PEAK.name,
            unit=PEAK.unit,
            side=names[-1],
            limit=f"<= {self.at_most:.2f}",
            verdict="failed",
        )
        if missing := failures(measured, names):
            return attrs.evolve(line, why="; ".join(missing))
        points = sorted(
            (sum(measured[name][0]["tokens"]), statistics.median(PEAK.of(found) for found in measured[name]))
            for name in names
        )
        *shorter, (longest, reached) = points
        slope, start = statistics.linear_regression(*zip(*shorter, strict=True))
        foretold = start + slope * longest
        sizes = ", ".join(f"{size / 1024:.2f} at {tokens:,.0f}" for tokens, size in points)
        return attrs.evolve(
            line,
            to="a straight line",
            ours=reached,
            theirs=foretold,
            figure=Interval(reached / foretold, None, None),
            verdict="reached" if reached / foretold <= self.at_most else "missed",
            notes=(f"GiB by tokens: {sizes}; {slope * 1000:.0f} MiB for 1,000 tokens more",),
        )
