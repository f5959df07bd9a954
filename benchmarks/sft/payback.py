"""The step at which compiling has paid for itself, which no comparison of two variants can show."""

from __future__ import annotations

import statistics

import attrs

from benchmarks.sft.metrics import COMPILE_SECONDS
from hooktrain.bench import Case, Comparison, Interval, Measured
from hooktrain.bench.verdicts import errors_of

__all__ = ["Payback"]


@attrs.frozen(kw_only=True)
class Payback:
    """The number of steps after which the faster steps of a compiled variant have taken back what compiling took.

    Attributes:
        name: name in tables.
        variant: the compiled variant.
        to: the variant that is not compiled.
    """

    name: str
    variant: str
    to: str

    def evaluate(self, case: Case, measured: Measured) -> Comparison:
        """Divide the seconds of compiling by the seconds that a step gains."""
        line = Comparison(
            name=self.name,
            metric="steps",
            unit="steps",
            variant=self.variant,
            to=self.to,
            kind="value",
            verdict="error",
        )
        if missing := errors_of(measured, [self.variant, self.to]):
            return attrs.evolve(line, why="; ".join(missing))
        warmup = case.warmup_steps
        fast, slow = (
            statistics.median(s for found in measured[name] for s in found["seconds"][warmup:])
            for name in (self.variant, self.to)
        )
        first, usual = (
            statistics.median(COMPILE_SECONDS.of(found, warmup) for found in measured[name])
            for name in (self.variant, self.to)
        )
        note = f"compiling takes {first - usual:.1f} s; a step takes {fast:.3f} s, and {slow:.3f} s without it"
        if fast >= slow:
            return attrs.evolve(line, verdict="worse", why="it never does, as steps are not faster", notes=(note,))
        steps = (first - usual) / (slow - fast)
        return attrs.evolve(line, ours=steps, figure=Interval(steps, None, None), verdict="better", notes=(note,))
