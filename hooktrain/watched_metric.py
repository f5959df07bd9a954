"""The metric of an evaluation that a save, a schedule or a plugin depends on."""

from __future__ import annotations

import math
from collections.abc import Mapping

from hooktrain.errors import HooktrainError, did_you_mean

__all__ = ["is_better", "watched_value"]


def watched_value(metrics: Mapping[str, float], name: str, where: str) -> float:
    """Return the value of a metric that an evaluation gave.

    Args:
        metrics: of the evaluation.
        name: of the metric; the loss of the only evaluation set when empty.
        where: path in the recipe, for errors.

    Raises:
        HooktrainError: the evaluation has no such metric, or several losses.
    """
    known = {key: value for key, value in metrics.items() if key.startswith("eval/")}
    losses = [key for key in known if key.endswith("/loss")]
    if not name and len(losses) != 1:
        raise HooktrainError(f"{where}: given none, and there are {_listed(losses)}; name one of them")
    found = name or losses[0]
    if found not in metrics:
        raise HooktrainError(
            f"{where}: given '{found}', which the evaluation does not measure{did_you_mean(found, known)}; expected one"
            f" of {_listed([*known])}"
        )
    return metrics[found]


def is_better(value: float, best: float, threshold: float, mode: str) -> bool:
    """Return whether a value is better than the best so far by more than a share of it; NaN never is."""
    sign = -1.0 if mode == "max" else 1.0
    margin = threshold * abs(best) if math.isfinite(best) else 0.0
    return sign * value < sign * best - margin


def _listed(names: list[str]) -> str:
    return ", ".join(sorted(names)) or "none"
