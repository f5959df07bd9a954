"""A target for memory that grows linearly, which no comparison of two variants can show."""

from __future__ import annotations

import statistics

import attrs

from benchmarks.sft.metrics import PEAK
from hooktrain.bench import Case, Comparison, Interval, Measured
from hooktrain.bench.verdicts import errors_of

__all__ = ["Growth"]


@attrs.frozen(kw_only=True)
class Growth:
    """A target for memory that grows linearly with the length of a sequence.

    The peak with the longest sequences is compared with the prediction of a line through the shorter ones.

    Attributes:
        name: name in tables.
        prefix: prefix of the variants' names.
        at_most: highest ratio to the prediction.
    """

    name: str
    prefix: str
    at_most: float = 1.05

    def evaluate(self, case: Case, measured: Measured) -> Comparison:
        """Fit the line and compare."""
        names = [name for name in measured if name.startswith(self.prefix)]
        line = Comparison(
            name=self.name,
            metric=PEAK.name,
            unit=PEAK.unit,
            variant=names[-1],
            limit=f"<= {self.at_most:.2f}",
            verdict="error",
        )
        if missing := errors_of(measured, names):
            return attrs.evolve(line, why="; ".join(missing))
        points = sorted(
            (sum(measured[name][0]["tokens"]), statistics.median(PEAK.of(found) for found in measured[name]))
            for name in names
        )
        *shorter, (longest, peak) = points
        slope, start = statistics.linear_regression(*zip(*shorter, strict=True))
        predicted = start + slope * longest
        sizes = ", ".join(f"{size / 1024:.2f} at {tokens:,.0f}" for tokens, size in points)
        return attrs.evolve(
            line,
            to="a straight line",
            ours=peak,
            theirs=predicted,
            figure=Interval(peak / predicted, None, None),
            verdict="passed" if peak / predicted <= self.at_most else "failed",
            notes=(f"GiB by tokens: {sizes}; {slope * 1000:.0f} MiB for 1,000 tokens more",),
        )
