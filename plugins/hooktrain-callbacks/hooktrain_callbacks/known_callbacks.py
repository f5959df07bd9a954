"""Callbacks known by name: those that cannot work in a hooktrain run, and those that only report."""

from __future__ import annotations

from typing import Any

__all__ = ["default_policy", "refusal"]

_REFUSED = {
    "transformers.trainer_callback.DefaultFlowCallback": "decides when to log, evaluate and save, which log_interval,"
    " eval_interval and checkpoint in the recipe do here; remove it",
    "callbacks.model_checkpoint.ModelCheckpoint": "writes checkpoints of Lightning's own, which hooktrain could not"
    " resume; write checkpoint: [{type: full, save_every_n_steps: ..., keep_best: ...}] in the recipe instead",
    "callbacks.on_exception_checkpoint.OnExceptionCheckpoint": "writes a checkpoint after a failure, when ranks can no"
    " longer work together; write checkpoint: [{type: full, save_every_n_steps: ..., auto_resume: true}] instead",
    "callbacks.gradient_accumulation_scheduler.GradientAccumulationScheduler": "changes how many micro-batches a step"
    " has, which is gradient_accumulation_steps here and the same for the whole run; remove it",
    "callbacks.batch_size_finder.BatchSizeFinder": "runs trainings of its own to find a batch size; set"
    " micro_batch_size in the recipe",
    "callbacks.lr_finder.LearningRateFinder": "runs trainings of its own to find a learning rate; set optimizer.lr"
    " in the recipe",
    "callbacks.stochastic_weight_avg.StochasticWeightAveraging": "puts a schedule of its own, stepped once an epoch, in"
    " the place of the recipe's; use lightning.pytorch.callbacks.WeightAveraging or EMAWeightAveraging",
    "callbacks.finetuning.BaseFinetuning": "freezes weights and gives the optimizer more of them while it trains, which"
    " neither schedule nor checkpoints follow; freeze what is to stay in a wrapper of the hook make_model",
    "callbacks.pruning.ModelPruning": "renames the model's weights while it trains, so that no checkpoint could be"
    " resumed; prune the exported model",
}
_REPORTERS = (
    "callbacks.lr_monitor.LearningRateMonitor",
    "callbacks.device_stats_monitor.DeviceStatsMonitor",
    "callbacks.model_summary.ModelSummary",
    "callbacks.throughput_monitor.ThroughputMonitor",
    "callbacks.progress.progress_bar.ProgressBar",
    "transformers.trainer_callback.ProgressCallback",
    "transformers.trainer_callback.PrinterCallback",
)
_TRACKERS = "transformers.integrations.integration_utils"


def _names(callback: Any) -> list[str]:
    """Return a callback's classes by name, without the package that Lightning is installed as."""
    found = []
    for kind in type(callback).__mro__:
        name = f"{kind.__module__}.{kind.__qualname__}"
        found.append(name.removeprefix("lightning.pytorch.").removeprefix("pytorch_lightning."))
    return found


def refusal(callback: Any) -> str:
    """Return why a callback cannot work in a hooktrain run, as the end of a sentence; empty when it can."""
    return next((_REFUSED[name] for name in _names(callback) if name in _REFUSED), "")


def default_policy(callback: Any, package: str, is_logger: bool) -> str:
    """Return ``on_error`` for a callback whose entry does not set it: those that only report are disabled."""
    names = _names(callback)
    tracks = is_logger or any(name in _REPORTERS or name.startswith(_TRACKERS) for name in names)
    return "disable" if tracks else "stop"
