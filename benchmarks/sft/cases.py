"""What is compared with what, what is to be reached, and what must hold for a number to count."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

import attrs

from benchmarks.ratios import Ratio, ratio_of_medians
from benchmarks.running import Findings

__all__ = ["CASES", "Case", "Growth", "Row"]

Measured = Mapping[str, Sequence[Findings]]
"""What was found in each run of each side."""


@attrs.frozen(kw_only=True)
class Row:
    """A line of the table.

    Attributes:
        ours, theirs: medians over the runs, in ``unit``; None where there is none.
        ratio: of ours to theirs; for a case without theirs, ours to the target.
        reached: None where nothing could be measured.
        notes: why not, and what to know.
    """

    case: str
    title: str
    unit: str
    ours: float | None = None
    theirs: float | None = None
    ratio: Ratio | None = None
    target: str
    reached: bool | None = None
    notes: tuple[str, ...] = ()


def tokens_per_second(findings: Findings, warmup: int) -> float:
    """Real tokens, padding excluded, over the time of whole steps."""
    return float(sum(findings["tokens"][warmup:]) / sum(findings["seconds"][warmup:]))


def peak(findings: Findings, warmup: int) -> float:
    """The most memory that the process held, in GiB."""
    return float(findings["peak_mib"]) / 1024


def preparing(findings: Findings, warmup: int) -> float:
    """Seconds from rows in a file to what the loop takes."""
    return float(findings["prepare_seconds"])


def seconds(findings: Findings, warmup: int) -> float:
    """What a driver without steps has timed."""
    return float(findings["seconds"])


Check = Callable[[Findings, Findings, int], str]
"""Given a run of each side and the warm-up steps, says what is wrong; empty when nothing is."""


def same_losses(tolerance: float) -> Check:
    """Both sides trained the same batches in the same way: losses agree step by step."""

    def check(ours: Findings, theirs: Findings, warmup: int) -> str:
        if ours["tokens"] != theirs["tokens"]:
            return "the sides did not train the same batches"
        apart = max(abs(a - b) / abs(b) for a, b in zip(ours["loss"], theirs["loss"], strict=True))
        return "" if apart <= tolerance else f"losses are up to {apart:.2%} apart, expected at most {tolerance:.2%}"

    return check


def like_losses(tolerance: float) -> Check:
    """Both sides trained the same tokens in another order: the mean of their losses agrees."""

    def check(ours: Findings, theirs: Findings, warmup: int) -> str:
        means = [statistics.fmean(side["loss"][warmup:]) for side in (ours, theirs)]
        apart = abs(means[0] - means[1]) / means[1]
        return (
            ""
            if apart <= tolerance
            else f"mean losses are {means[0]:.2f} and {means[1]:.2f}, expected within {tolerance:.0%}"
        )

    return check


def falling_losses(ours: Findings, theirs: Findings, warmup: int) -> str:
    """The sides train other tokens, so that losses cannot be compared; but both must learn."""
    for name, side in (("our", ours), ("their", theirs)):
        losses = side["loss"]
        if not all(map(math.isfinite, losses)):
            return f"{name} loss is not finite"
        if statistics.fmean(losses[-(len(losses) // 2) :]) >= losses[0]:
            return f"{name} loss does not fall ({losses[0]:.2f} at first, {losses[-1]:.2f} at last)"
    return ""


def same_rows(ours: Findings, theirs: Findings, warmup: int) -> str:
    """Both sides prepared the same tokens."""
    counts = [_prepared_tokens(side) for side in (ours, theirs)]
    return "" if counts[0] == counts[1] else f"the sides prepared {counts[0]} and {counts[1]} tokens"


def from_cache(ours: Findings, theirs: Findings, warmup: int) -> str:
    """The second start had the same rows as the first."""
    return same_rows(ours, theirs, warmup)


def _prepared_tokens(findings: Findings) -> int:
    return int(
        findings["prepared_tokens"] if "prepared_tokens" in findings else findings["report"]["train"]["tokens_kept"]
    )


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
        relation = f">= {self.at_least:.2f}" if self.at_least is not None else f"<= {self.at_most:.2f}"
        row = Row(
            case=self.name, title=self.title, unit=self.unit, target=relation + ("" if self.theirs else f" {self.unit}")
        )
        failures = _failures(measured, [self.ours, *filter(None, [self.theirs])])
        if failures:
            return attrs.evolve(row, notes=failures)
        ours = [self.metric(findings, warmup) for findings in measured[self.ours]]
        value = statistics.median(ours)
        if self.theirs is None:
            ratio, theirs = None, None
            compared = value
        else:
            others = [self.metric(findings, warmup) for findings in measured[self.theirs]]
            ratio, theirs = ratio_of_medians(ours, others), statistics.median(others)
            compared = ratio.value
        notes = [problem for problem in (self._check(measured, *check, warmup) for check in self.checks) if problem]
        good = compared >= self.at_least if self.at_least is not None else compared <= (self.at_most or 0.0)
        return attrs.evolve(
            row,
            ours=value,
            theirs=theirs,
            ratio=ratio,
            reached=good and not notes,
            notes=(*notes, *_noise(measured, self.sides)),
        )

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

    def row(self, measured: Measured, warmup: int) -> Row:
        """Fit the line and compare."""
        row = Row(case=self.name, title=self.title, unit=self.unit, target=f"<= {self.at_most:.2f}")
        names = [name for name in measured if name.startswith(self.prefix)]
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


def _noise(measured: Measured, names: set[str]) -> tuple[str, ...]:
    """A warning when other programs took part of the machine."""
    shares = [run["others"] for name in names for run in measured.get(name, ()) if run.get("others")]
    worst = max(shares, default=0.0)
    return (
        (f"other programs ran beside it (up to {worst:.0%} of its processor time): not a clean timing",)
        if worst > 0.05
        else ()
    )


_FP32, _BF16 = same_losses(2e-3), same_losses(5e-2)

CASES: tuple[Case | Growth, ...] = (
    Case(
        name="fp32-trl",
        title="fp32 packs, answers, to TRL",
        group="fp32",
        ours="ours",
        theirs="trl",
        at_least=1.3,
        checks=(("ours", "trl", falling_losses),),
    ),
    Case(
        name="fp32-all-trl",
        title="fp32 packs, every token, to TRL",
        group="fp32",
        ours="ours-all",
        theirs="trl",
        at_least=1.0,
        checks=(("ours-all", "trl", like_losses(0.15)),),
    ),
    Case(
        name="fp32-loop",
        title="fp32 packs, answers, to a loop",
        group="fp32",
        ours="ours",
        theirs="loop",
        at_least=0.97,
        checks=(("ours", "loop", _FP32),),
    ),
    Case(
        name="bf16-trl",
        title="bf16 packs, to TRL bf16 weights",
        group="bf16",
        ours="ours",
        theirs="trl",
        at_least=1.4,
        checks=(("ours", "trl", falling_losses),),
    ),
    Case(
        name="bf16-weights-trl",
        title="bf16 weights, to TRL bf16 weights",
        group="bf16",
        ours="ours-weights",
        theirs="trl",
        at_least=1.4,
        checks=(("ours-weights", "trl", falling_losses),),
    ),
    Case(
        name="bf16-loop",
        title="bf16 packs, to a loop, autocast",
        group="bf16",
        ours="ours",
        theirs="loop",
        at_least=0.97,
        checks=(("ours", "loop", _BF16),),
    ),
    Case(
        name="bf16-weights-loop",
        title="bf16 weights, to a loop",
        group="bf16",
        ours="ours-weights",
        theirs="loop-weights",
        at_least=0.97,
        checks=(("ours-weights", "loop-weights", _BF16),),
    ),
    Case(
        name="defaults-trl",
        title="defaults, 8 a step, to TRL's",
        group="defaults",
        ours="ours",
        theirs="trl",
        at_least=2.5,
        checks=(("ours", "ours-fp32", _BF16), ("ours", "trl", falling_losses)),
    ),
    Case(
        name="defaults-arctic",
        title="defaults, 8 a step, to Arctic's",
        group="defaults",
        ours="ours",
        theirs="arctic",
        at_least=4.0,
        checks=(("ours", "ours-fp32", _BF16), ("ours", "arctic", falling_losses)),
    ),
    Case(
        name="memory-trl",
        title="peak memory, defaults, to TRL's",
        group="defaults",
        ours="ours",
        theirs="trl",
        metric=peak,
        unit="GiB",
        at_most=0.5,
    ),
    Case(
        name="prepare",
        title="preparing, to tokenizing alone",
        group="prepare",
        ours="ours",
        theirs="tokenizing",
        metric=preparing,
        unit="s",
        at_most=1.25,
        checks=(("ours", "tokenizing", same_rows),),
    ),
    Case(
        name="prepare-trl",
        title="preparing, to TRL without masks",
        group="prepare",
        ours="ours",
        theirs="trl",
        metric=preparing,
        unit="s",
        at_most=1.0,
        checks=(("ours", "trl", same_rows),),
    ),
    Case(
        name="prepare-memory",
        title="its memory, to a tenth of the rows",
        group="prepare",
        ours="ours",
        theirs="ours-tenth",
        metric=peak,
        unit="GiB",
        at_most=1.1,
    ),
    Case(
        name="cache",
        title="preparing, second start",
        group="prepare",
        ours="ours-again",
        metric=preparing,
        unit="s",
        at_most=1.0,
        checks=(("ours-again", "ours", from_cache),),
    ),
    Case(
        name="packing",
        title="packing a million lengths",
        group="packing",
        ours="ours",
        metric=seconds,
        unit="s",
        at_most=5.0,
    ),
    Growth(name="length-document", title="memory of one long conversation", group="length", prefix="document-"),
    Growth(name="length-packs", title="memory of long packs", group="length", prefix="packs-"),
)
