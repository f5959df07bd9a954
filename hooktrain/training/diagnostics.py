"""Diagnostics of a run: wrong results of hooks, numbers that are not finite, plugins that raise."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from hooktrain.errors import HooktrainError, LoopHookError, NonFiniteError, failure_of
from hooktrain.plugin.manager import PluginHost
from hooktrain.types import BatchCounts, LossSum

if TYPE_CHECKING:
    from hooktrain.training.trainer import Trainer

__all__ = [
    "explain",
    "merged",
    "name_taken",
    "other_sums",
    "require_complete_epoch",
    "require_finished",
    "require_finite",
    "require_trainable",
    "wrong_answer",
    "wrong_loss",
]

T = TypeVar("T")


def wrong_answer(host: PluginHost, hook: str, given: Any, expected: str) -> LoopHookError:
    """A loop hook's answer is not what its hook promises; those who may have given it are named."""
    text = given if isinstance(given, str) else type(given).__name__
    return LoopHookError(
        f"hook {hook}: returned {text}, expected {expected} (asked, in this order: {_who(host, hook)})"
    )


def wrong_loss(host: PluginHost, loss: Any, counts: BatchCounts) -> LoopHookError:
    """Return the error for a loss that is not divided by what ``count_batch`` has counted."""
    given = f"a denominator of {loss.denominator} {loss.counts}" if isinstance(loss, LossSum) else loss
    unit = "" if counts.counts == "tokens" else f", counts='{counts.counts}'"
    what = "loss of each token times its weight" if "weighted" in counts.counts else "loss"
    expected = (
        f"LossSum(total=<undivided sum of the {what}>, denominator={counts.denominator:g}{unit}), the count of the hook"
        " count_batch, and never the mean"
    )
    return wrong_answer(host, "compute_loss", given, expected)


def name_taken(host: PluginHost, name: str) -> HooktrainError:
    """Two log one metric."""
    return HooktrainError(
        f"hook collect_metrics: '{name}' is logged by two plugins, or by a plugin and the engine (those that log:"
        f" {_who(host, 'collect_metrics')}); give it another name, such as my_plugin/{name}"
    )


def require_finite(metrics: Mapping[str, float], step: int) -> None:
    """Raise where loss or gradient norm is not a number to continue with."""
    for name in ("loss", "grad_norm"):
        if not math.isfinite(metrics.get(name, 0.0)):
            raise NonFiniteError(
                f"step {step}: {name} is {metrics[name]}, expected a finite number; lower optimizer.lr, check the data,"
                " or leave such steps out with on_nan: skip"
            )


def require_trainable(trainer: Trainer) -> None:
    """As :func:`require_finite`, of what has not been logged yet; collective, so that no rank fails alone."""
    loss, norm = trainer.strategy.sum_tensor(trainer.meter.total(trainer.strategy)), trainer.meter.grad_norm
    require_finite({"loss": float(loss), "grad_norm": float(norm or 0.0)}, trainer.state.global_step)


def require_complete_epoch(trainer: Trainer, epoch: int) -> None:
    """Refuse an epoch that ended in the middle, for no reason that anybody has given.

    Raises:
        HooktrainError: naming the plugins that may have ended it, and the error that one of them has hidden.
    """
    done, rows = trainer.state.sequences, len(trainer.data.train)
    if done < rows and not (trainer.should_stop or trainer.leaves_epoch or trainer.state.epoch != epoch):
        raise _unfinished(trainer, "run_epoch", f"{done} of {rows} sequences of epoch {epoch}", "request_epoch_end()")


def require_finished(trainer: Trainer, agree: Callable[[], object]) -> None:
    """Refuse a training that ended before its last step, for no reason that anybody has given.

    Args:
        trainer: after its loop.
        agree: takes up requests that were made after the last step.

    Raises:
        HooktrainError: as :func:`require_complete_epoch`.
    """
    if not trainer.should_stop and trainer.epochs:
        agree()
    if not trainer.should_stop and trainer.epochs:  # epochs may have been cut short, but each has come to its end
        done = f"step {trainer.global_step} of {trainer.training_horizon}"
        raise _unfinished(trainer, "run_train", done, "request_stop(reason)")


def _unfinished(trainer: Trainer, hook: str, done: str, request: str) -> HooktrainError:
    host, swallowed = trainer.host, trainer.host.error_policy.swallowed
    ended = f"hook {hook}: returned after {done}, and nobody has given a reason to stop"
    if swallowed is None:
        return HooktrainError(
            f"{ended} (asked, in this order: {_who(host, hook)}); run what is left, or call trainer.{request}"
        )
    where, plugin, problem = swallowed
    made = HooktrainError(
        f"{ended}; the wrapper of plugin '{plugin}' around {where} has ended the error {problem}; have it raise what it"
        f" cannot fix, or call trainer.{request}"
    )
    failure_of(made).raised_in = plugin, where
    return made


def explain(host: PluginHost, exception: BaseException, step: int, rank: int) -> None:
    """Note on the exception where it happened, for whoever prints it."""
    failure, blamed = failure_of(exception), host.blame(exception)
    where = f"step {step}, rank {rank if failure.rank is None else failure.rank}"  # all may raise what one has met
    if blamed is not None and blamed[0] != "loop":  # whose hooks wrap everything
        where = f"plugin '{blamed[0]}', hook {blamed[1]}, {where}"
    failure.where, failure.step, failure.when = where, step, time.monotonic()


def _who(host: PluginHost, hook: str) -> str:
    return ", ".join(f"'{found.plugin_name}'" for found in host.implementations(hook))


def other_sums(host: PluginHost, given: Iterable[str], expected: Iterable[str]) -> HooktrainError:
    """The error for a loss whose ``sums`` are not those of the micro-batches before."""
    here, before = (", ".join(sorted(names)) or "none" for names in (given, expected))
    return wrong_answer(
        host,
        "compute_loss",
        f"the sums {here}",
        f"{before}, as before: their means need them in every micro-batch; a wrapper that changes the loss returns"
        " loss._replace(total=...)",
    )


def merged(
    host: PluginHost, found: Iterable[Mapping[str, T]], sums: Collection[str], own: Collection[str]
) -> dict[str, T]:
    """The metrics of all plugins; each name may occur once, and be none of ``own`` or ``sums``.

    Raises:
        HooktrainError: when a name is taken.
    """
    made: dict[str, T] = {}
    for name in sums:
        if name in own:
            raise name_taken(host, name)
    for metrics in found:
        for name, value in metrics.items():
            if name in made or name in own or name in sums:
                raise name_taken(host, name)
            made[name] = value
    return made
