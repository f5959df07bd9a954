"""The metrics of the suite ``preference``, and the check that two runs did the same work."""

from __future__ import annotations

from hooktrain.bench import Check, Findings, Metric

__all__ = ["PAIRS_PER_SECOND", "same_training"]


def _rate(clock: str) -> Metric:
    def read(findings: Findings, warmup: int) -> float:
        # not the median over steps: pairs differ in length, and every variant has the same ones at each step
        return float(sum(findings["pairs"][warmup:]) / sum(findings[clock][warmup:]))

    undisturbed = _rate("cpu_seconds") if clock == "seconds" else None
    return Metric("pairs_per_second", "pairs/s", "higher", read=read, undisturbed=undisturbed)


PAIRS_PER_SECOND = _rate("seconds")
"""Pairs by the time of all measured steps."""


def same_training(limit: float) -> Check:
    """Return a check that both variants trained the same pairs: tokens, losses and margins agree at every step."""

    def check(ours: Findings, theirs: Findings, warmup: int) -> str:
        if ours["tokens"] != theirs["tokens"]:
            return f"the variants trained {ours['tokens']} and {theirs['tokens']} tokens"
        for name in ("loss", "margin"):
            apart = max(abs(a - b) for a, b in zip(ours[name], theirs[name], strict=True))
            if not apart <= limit:
                return f"{name}: up to {apart:.2g} apart, expected at most {limit:.2g}"
        return ""

    return check
