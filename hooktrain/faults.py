"""What the trainer says when something is wrong: a wrong answer, a number that is not finite, a plugin that raised."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hooktrain.errors import HooktrainError, NonFiniteError, SegmentError
from hooktrain.plugins import PluginHost

__all__ = ["explain", "name_taken", "require_finite", "wrong_answer"]


def wrong_answer(host: PluginHost, hook: str, given: Any, expected: str) -> SegmentError:
    """A segment's answer is not what its hook promises; those who may have given it are named."""
    text = given if isinstance(given, str) else type(given).__name__
    return SegmentError(f"hook {hook}: returned {text}, expected {expected} (asked, in this order: {_who(host, hook)})")


def name_taken(host: PluginHost, name: str) -> HooktrainError:
    """Two log one metric."""
    return HooktrainError(
        f"hook collect_metrics: '{name}' is logged by two plugins, or by a plugin and the engine (those that log:"
        f" {_who(host, 'collect_metrics')}); give it another name, such as my_plugin/{name}"
    )


def require_finite(metrics: Mapping[str, float], step: int) -> None:
    """Raise where loss or gradient norm is not a number to go on with."""
    for name in ("loss", "grad_norm"):
        if not math.isfinite(metrics.get(name, 0.0)):
            raise NonFiniteError(
                f"step {step}: {name} is {metrics[name]}, expected a finite number; lower optimizer.lr, check the data,"
                " or leave such steps out with on_nan: skip"
            )


def explain(host: PluginHost, exception: BaseException, step: int, rank: int) -> None:
    """Note on the exception where it happened, for whoever prints it."""
    blamed = host.blame(exception)
    where = f"step {step}, rank {rank}"
    if blamed is not None and host.records[blamed[0]].distribution != "hooktrain":
        where = f"plugin '{blamed[0]}', hook {blamed[1]}, {where}"
    exception.hooktrain_where = where  # type: ignore[attr-defined]


def _who(host: PluginHost, hook: str) -> str:
    return ", ".join(f"'{found.plugin_name}'" for found in host.implementations(hook))
