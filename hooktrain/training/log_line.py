"""The metrics of a log line: the engine's own, those that plugins collect, and those of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hooktrain.training.diagnostics import merged, require_finite
from hooktrain.training.loss_terms import agree_on_sums
from hooktrain.training.metrics import OWN_METRICS

if TYPE_CHECKING:
    from hooktrain.training.trainer import Trainer

__all__ = ["read_metrics"]


def read_metrics(trainer: Trainer, more: Mapping[str, float]) -> dict[str, float]:
    """Read all metrics of the steps since the last log line, waiting for the device once. Collective.

    Args:
        trainer: whose plugins are asked.
        more: the metrics of an evaluation, if there was one.

    Raises:
        NonFiniteError: one is not finite, and ``on_nan`` is ``stop``.
    """
    state, meter, host = trainer.state, trainer.meter, trainer.host
    agree_on_sums(trainer)
    own = (*OWN_METRICS, *state.counted)
    host.metric_owners = dict.fromkeys((*own, *meter.sums, *more), "the engine")
    extra = merged(host, trainer.hooks.collect_metrics(trainer=trainer), meter.sums, own)
    read = meter.read(trainer.strategy, extra)
    epoch = round(state.epoch + state.sequences / len(trainer.data.train), 4)
    metrics: dict[str, float] = {"step": state.global_step, "epoch": epoch}
    if meter.steps or meter.denominator:
        ahead = {"loss": read.pop("loss", None), "lr": trainer.last_lr, "grad_norm": read.pop("grad_norm", None)}
        metrics.update({name: value for name, value in ahead.items() if value is not None})
    counted = {"tokens": state.tokens, "supervised_tokens": state.supervised_tokens, **state.counted}
    metrics.update(counted, **read, **more)
    if state.skipped_steps:
        metrics["skipped_steps"] = state.skipped_steps
    if trainer.recipe.on_nan == "stop":
        require_finite(metrics, state.global_step)
    return metrics
