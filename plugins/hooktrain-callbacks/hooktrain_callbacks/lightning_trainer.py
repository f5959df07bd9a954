"""Proxy for ``lightning.pytorch.Trainer`` that answers from the state of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from hooktrain import evaluation_steps
from hooktrain_callbacks.dataloaders import EvalBatches, TrainBatches, eval_sizes, micro_batches_of_epoch
from hooktrain_callbacks.lightning_strategy import LightningStrategy
from hooktrain_callbacks.proxy import Proxy, RunProxy, assign, unmapped

if TYPE_CHECKING:
    from hooktrain import Trainer
    from hooktrain_callbacks.callback_handler import CallbackHandler

__all__ = ["LightningTrainer"]


class _Progress(Proxy):
    """Counters of micro-batches."""

    path = "trainer.fit_loop.epoch_loop.batch_progress"
    is_last_batch: bool = False
    total: Any = None
    current: Any = None


class _Count(Proxy):
    path = "trainer.fit_loop.epoch_loop.batch_progress.total"
    ready: int = 0
    completed: int = 0


class _EvaluationLoop(Proxy):
    path = "trainer._evaluation_loop"
    batch_progress: Any = None
    _has_run: bool = False


class _EpochLoop(Proxy):
    path = "trainer.fit_loop.epoch_loop"
    batch_progress: Any = None
    val_loop: Any = None
    trainer: LightningTrainer

    @property
    def _batches_that_stepped(self) -> int:
        return self.trainer.global_step

    @property
    def global_step(self) -> int:
        return self.trainer.global_step

    @property
    def batch_idx(self) -> int:
        return self.trainer.batch_idx

    @property
    def total_batch_idx(self) -> int:
        return int(self.trainer.fit_loop.total_batch_idx)

    def _should_check_val_epoch(self) -> bool:
        return self.trainer.enable_validation


class _FitLoop(Proxy):
    path = "trainer.fit_loop"
    inner: ClassVar[Mapping[str, type[Proxy]]] = {"epoch_loop": _EpochLoop}
    epoch_loop: Any = None
    _skip_backward = False
    restarting = False
    trainer: LightningTrainer

    @property
    def max_epochs(self) -> int:
        return self.trainer.max_epochs

    @property
    def max_batches(self) -> int:
        return self.trainer.num_training_batches

    @property
    def total_batch_idx(self) -> int:
        return self.trainer.current_epoch * self.trainer.num_training_batches + self.trainer.batch_idx

    def _should_accumulate(self) -> bool:
        return not self.trainer.run.is_last_microbatch


class _LoggerConnector(Proxy):
    path = "trainer._logger_connector"
    trainer: LightningTrainer

    @property
    def should_update_logs(self) -> bool:
        """Return whether the current step, or the one that has just ended, writes a log line."""
        run = self.trainer.run
        step = run.global_step + (not self.trainer.step_is_over)
        return bool(step % run.recipe.log_interval == 0 or step >= run.training_horizon)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.trainer.log_soon(metrics)


class LightningTrainer(RunProxy):
    """The argument ``trainer`` of Lightning's callbacks."""

    settable: ClassVar[frozenset[str]] = frozenset({"should_stop"})
    inner: ClassVar[Mapping[str, type[Proxy]]] = {
        "fit_loop": _FitLoop,
        "strategy": LightningStrategy,
        "_logger_connector": _LoggerConnector,
        "_evaluation_loop": _EvaluationLoop,
    }
    # assigned by the bridge
    state: Any = None
    lightning_module: Any = None
    strategy: Any = None
    accelerator: Any = None
    precision_plugin: Any = None
    fit_loop: Any = None
    callbacks: Any = None
    loggers: Any = None
    lr_scheduler_configs: Any = None
    callback_metrics: Any = None
    logged_metrics: Any = None
    progress_bar_metrics: Any = None
    batch_idx: int = 0
    step_is_over: bool = False
    stop_requested: bool = False
    _logger_connector: Any = None
    _evaluation_loop: Any = None
    evaluation_count: Any = None
    # features that a run of hooktrain does not have
    sanity_checking = testing = predicting = fast_dev_run = barebones = received_sigterm = interrupted = False
    overfit_batches = 0.0
    datamodule = profiler = checkpoint_callback = min_epochs = min_steps = max_time = gradient_clip_algorithm = None
    checkpoint_callbacks = ()
    num_sanity_val_steps = 0
    limit_train_batches = limit_val_batches = 1.0

    def __init__(self, handler: CallbackHandler, run: Trainer) -> None:
        super().__init__(handler, run)
        total, evaluated = _Count(handler), _Count(handler)
        loop, evaluation = _EpochLoop(handler), _EvaluationLoop(handler)
        progress, evaluation_progress = _Progress(handler), _Progress(handler)
        assign(progress, total=total, current=total)
        assign(evaluation_progress, total=evaluated, current=_Count(handler))
        assign(evaluation, batch_progress=evaluation_progress)
        assign(loop, batch_progress=progress, val_loop=evaluation, trainer=self)
        fit, connector = _FitLoop(handler), _LoggerConnector(handler)
        assign(fit, epoch_loop=loop, trainer=self)
        assign(connector, trainer=self)
        assign(self, fit_loop=fit, _logger_connector=connector, _evaluation_loop=evaluation)
        assign(self, strategy=LightningStrategy(handler, run), evaluation_count=evaluated, lr_scheduler_configs=[])
        assign(self, callback_metrics={}, logged_metrics={}, progress_bar_metrics={}, pending={})

    # ----------------------------------------------------------------------------------------------------- control

    @property
    def should_stop(self) -> bool:
        return bool(self.run.should_stop or self.stop_requested)

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        if value and not self.should_stop:
            loaded = self.handler.current
            self.run.request_stop(f"requested by {loaded.name if loaded is not None else 'a callback of Lightning'}")
            assign(self, stop_requested=True)

    def save_checkpoint(self, *arguments: Any, **named: Any) -> None:
        raise unmapped(
            self.handler, "trainer.save_checkpoint (checkpoints are written by the recipe's own engines)", "calls"
        )

    def log_soon(self, metrics: Mapping[str, Any]) -> None:
        """Keep metrics for the next log line."""
        self.pending.update(metrics)

    def print(self, *arguments: Any, **named: Any) -> None:
        """Print on rank 0."""
        if self.is_global_zero:
            print(*arguments, **named)

    # -------------------------------------------------------------------------------------------------------- where

    @property
    def global_step(self) -> int:
        return int(self.run.global_step)

    @property
    def current_epoch(self) -> int:
        return int(self.run.state.epoch)

    @property
    def max_epochs(self) -> int:
        return int(self.run.epochs.stop)

    @property
    def max_steps(self) -> int:
        return int(self.run.training_horizon)

    @property
    def estimated_stepping_batches(self) -> int:
        return int(self.run.training_horizon)

    @property
    def num_training_batches(self) -> int:
        return micro_batches_of_epoch(self.run)

    @property
    def num_val_batches(self) -> list[int]:
        return list(eval_sizes(self.run).values())

    @property
    def num_sanity_val_batches(self) -> list[int]:
        return []

    @property
    def enable_validation(self) -> bool:
        return bool(self.run.data.evaluation)

    @property
    def val_check_interval(self) -> float:
        """Return the steps between evaluations; 1.0 where there are none: callbacks then act at the end of epochs."""
        return (evaluation_steps(self.run) or self.max_steps) if self.enable_validation else 1.0

    @property
    def check_val_every_n_epoch(self) -> int | None:
        return None if self.enable_validation else 1

    @property
    def training(self) -> bool:
        return bool(self.state.stage == "train")

    @property
    def validating(self) -> bool:
        return bool(self.state.stage == "validate")

    evaluating = validating

    @property
    def accumulate_grad_batches(self) -> int:
        return int(self.run.recipe.gradient_accumulation_steps)

    @property
    def log_every_n_steps(self) -> int:
        return int(self.run.recipe.log_interval)

    @property
    def gradient_clip_val(self) -> float:
        return float(self.run.recipe.gradient_clipping)

    # -------------------------------------------------------------------------------------------------------- parts

    @property
    def optimizers(self) -> list[Any]:
        return [self.run.optimizer]

    @property
    def model(self) -> Any:
        return self.lightning_module

    @property
    def logger(self) -> Any:
        return self.loggers[0]

    @property
    def train_dataloader(self) -> TrainBatches:
        return TrainBatches(self.run)

    @property
    def val_dataloaders(self) -> Any:
        made = [EvalBatches(self.run, name) for name in self.run.data.evaluation]
        return made[0] if len(made) == 1 else made or None

    @property
    def progress_bar_callback(self) -> Any:
        bars = (one for one in self.callbacks if any(kind.__name__ == "ProgressBar" for kind in type(one).__mro__))
        return next(bars, None)

    @property
    def early_stopping_callbacks(self) -> list[Any]:
        return [one for one in self.callbacks if type(one).__name__ == "EarlyStopping"]

    @property
    def early_stopping_callback(self) -> Any:
        return next(iter(self.early_stopping_callbacks), None)

    @property
    def precision(self) -> str:
        return str(self.precision_plugin.precision)

    @property
    def default_root_dir(self) -> str:
        return str(self.run.run_dir)

    log_dir = default_root_dir

    @property
    def ckpt_path(self) -> str | None:
        return None if self.run.resume_from is None else str(self.run.resume_from)
