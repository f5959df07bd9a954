"""The number of a run, and what must hold of two runs before their numbers are compared."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

from benchmarks.running import Findings

__all__ = [
    "Check",
    "falling_losses",
    "held",
    "like_losses",
    "peak",
    "preparing",
    "same_losses",
    "same_rows",
    "seconds",
    "tokens_per_cpu_second",
    "tokens_per_second",
]


def tokens_per_second(findings: Findings, warmup: int) -> float:
    """Real tokens, padding excluded, by the time of whole steps: the median over the steps."""
    steps = list(zip(findings["tokens"], findings["seconds"], strict=True))[warmup:]
    return float(statistics.median(tokens / took for tokens, took in steps))


def tokens_per_cpu_second(findings: Findings, warmup: int) -> float:
    """The same by processor time, which other programs disturb less; but threads that wait for each other may spin."""
    steps = list(zip(findings["tokens"], findings["cpu_seconds"], strict=True))[warmup:]
    return float(statistics.median(tokens / took for tokens, took in steps))


def peak(findings: Findings, warmup: int) -> float:
    """The most memory that the process held, in GiB."""
    return float(findings["peak_mib"]) / 1024


def held(findings: Findings, warmup: int) -> float:
    """The most memory that could not be taken back (mapped files can), and that of the largest worker, in GiB."""
    return float((findings["anonymous_mib"] or findings["peak_mib"]) + findings["child_mib"]) / 1024


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


def _prepared_tokens(findings: Findings) -> int:
    return int(
        findings["prepared_tokens"] if "prepared_tokens" in findings else findings["report"]["train"]["tokens_kept"]
    )
