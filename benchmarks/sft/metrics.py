"""The metrics of the suite ``sft``, and checks that two runs did the same work."""

from __future__ import annotations

import math
import statistics

from hooktrain.bench import Check, Findings, Metric

__all__ = [
    "ANONYMOUS",
    "COMPILE_SECONDS",
    "PEAK",
    "PREPARING",
    "TOKENS_PER_SECOND",
    "falling_losses",
    "like_losses",
    "same_losses",
    "same_tokens",
]


def _rate(clock: str) -> Metric:
    def read(findings: Findings, warmup: int) -> float:
        steps = list(zip(findings["tokens"], findings[clock], strict=True))[warmup:]
        return float(statistics.median(tokens / took for tokens, took in steps))

    undisturbed = _rate("cpu_seconds") if clock == "seconds" else None
    return Metric("tokens_per_second", "tok/s", "higher", read=read, undisturbed=undisturbed)


TOKENS_PER_SECOND = _rate("seconds")
"""Tokens without padding by the time of whole steps: the median over the steps."""


def _anonymous(findings: Findings, warmup: int) -> float:
    return float(findings["anonymous_mib"] or findings["peak_mib"])


PEAK = Metric("peak_mib", "MiB", exact=True)
"""Peak memory of the process, which hardly differs from run to run."""
ANONYMOUS = Metric("anonymous_mib", "MiB", read=_anonymous, exact=True)
"""Peak of the memory that the system cannot take back (as it can mapped files).

Workers are left out: they are forks, and the peak that the system keeps of one counts the pages that it shares.
"""


def _more_than_later(findings: Findings, warmup: int) -> float:
    first, later = findings["seconds"][:warmup], findings["seconds"][warmup:]
    return float(sum(first) - warmup * statistics.median(later))


COMPILE_SECONDS = Metric("compile_seconds", "s", read=_more_than_later)
"""Time that the steps of the warm-up take beyond that of later ones, most of it for compiling where blocks are."""
PREPARING = Metric("prepare_seconds", "s")
"""Time from examples in a file to what the loop trains."""


def same_losses(tolerance: float) -> Check:
    """Return a check that both variants trained the same batches: losses agree at every step."""

    def check(ours: Findings, theirs: Findings, warmup: int) -> str:
        if ours["tokens"] != theirs["tokens"]:
            return "the variants did not train the same batches"
        apart = max(abs(a - b) / abs(b) for a, b in zip(ours["loss"], theirs["loss"], strict=True))
        return "" if apart <= tolerance else f"losses are up to {apart:.2%} apart, expected at most {tolerance:.2%}"

    return check


def like_losses(tolerance: float) -> Check:
    """Return a check that both variants trained the same tokens in another order: mean losses agree."""

    def check(ours: Findings, theirs: Findings, warmup: int) -> str:
        means = [statistics.fmean(variant["loss"][warmup:]) for variant in (ours, theirs)]
        apart = abs(means[0] - means[1]) / means[1]
        return (
            ""
            if apart <= tolerance
            else f"mean losses are {means[0]:.2f} and {means[1]:.2f}, expected within {tolerance:.0%}"
        )

    return check


def falling_losses(ours: Findings, theirs: Findings, warmup: int) -> str:
    """Check that both losses fall, where variants train different tokens."""
    for name, variant in (("our", ours), ("their", theirs)):
        losses = variant["loss"]
        if not all(map(math.isfinite, losses)):
            return f"{name} loss is not finite"
        if statistics.fmean(losses[-(len(losses) // 2) :]) >= losses[0]:
            return f"{name} loss does not fall ({losses[0]:.2f} at first, {losses[-1]:.2f} at last)"
    return ""


def same_tokens(ours: Findings, theirs: Findings, warmup: int) -> str:
    """Check that both variants prepared the same tokens."""
    counts = [_prepared_tokens(variant) for variant in (ours, theirs)]
    return "" if counts[0] == counts[1] else f"the variants prepared {counts[0]} and {counts[1]} tokens"


def _prepared_tokens(findings: Findings) -> int:
    return int(
        findings["prepared_tokens"] if "prepared_tokens" in findings else findings["report"]["train"]["tokens_kept"]
    )
