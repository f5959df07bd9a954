"""What stands for ``lightning.pytorch.Trainer``: what callbacks read of it, told from the state of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from hooktrain_callbacks.lightning_strategy import LightningStrategy
from hooktrain_callbacks.standin import StandIn, unmapped
from hooktrain_callbacks.views import EvalBatches, TrainBatches, eval_sizes, micro_batches_of_epoch

if TYPE_CHECKING:
    from hooktrain import Trainer
    from hooktrain_callbacks.slots import Slots

__all__ = ["LightningTrainer"]


class _Progress(StandIn):
    """Counters of micro-batches."""

    path = "trainer.fit_loop.epoch_loop.batch_progress"
    is_last_batch: bool = False
    total: Any = None
    current: Any = None


class _Count(StandIn):
    path = "trainer.fit_loop.epoch_loop.batch_progress.total"
    ready: int = 0
    completed: int = 0


class _EvaluationLoop(StandIn):
    path = "trainer._evaluation_loop"
    batch_progress: Any = None
    _has_run: bool = False


class _EpochLoop(StandIn):
    path = "trainer.fit_loop.epoch_loop"
    batch_progress: Any = None
    val_loop: Any = None
    _trainer: LightningTrainer

    @property
    def _batches_that_stepped(self) -> int:
        return self._trainer.global_step

    @property
    def global_step(self) -> int:
        return self._trainer.global_step

    @property
    def batch_idx(self) -> int:
        return self._trainer.batch_idx

    @property
    def total_batch_idx(self) -> int:
        return self._trainer.fit_loop.total_batch_idx

    def _should_check_val_epoch(self) -> bool:
        return self._trainer.enable_validation


class _FitLoop(StandIn):
    path = "trainer.fit_loop"
    inner: ClassVar[Mapping[str, type[StandIn]]] = {"epoch_loop": _EpochLoop}
    epoch_loop: Any = None
    _skip_backward = False
    restarting = False
    _trainer: LightningTrainer

    @property
    def max_epochs(self) -> int:
        return self._trainer.max_epochs

    @property
    def max_batches(self) -> int:
        return self._trainer.num_training_batches

    @property
    def total_batch_idx(self) -> int:
        return self._trainer.current_epoch * self._trainer.num_training_batches + self._trainer.batch_idx

    def _should_accumulate(self) -> bool:
        return not self._trainer._run.is_last_microbatch


class _LoggerConnector(StandIn):
    path = "trainer._logger_connector"
    _trainer: LightningTrainer

    @property
    def should_update_logs(self) -> bool:
        """Whether the step that is under way, or has just ended, is one with a log line."""
        run = self._trainer._run
        step = run.global_step + (not self._trainer.step_is_over)
        return bool(step % run.recipe.log_interval == 0 or step >= run.training_horizon)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self._trainer.log_soon(metrics)


class LightningTrainer(StandIn):
    """The trainer that callbacks of Lightning are given."""

    settable: ClassVar[frozenset[str]] = frozenset({"should_stop"})
    inner: ClassVar[Mapping[str, type[StandIn]]] = {
        "fit_loop": _FitLoop,
        "strategy": LightningStrategy,
        "_logger_connector": _LoggerConnector,
        "_evaluation_loop": _EvaluationLoop,
    }
    # what the bridge puts in
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
    _logger_connector: Any = None
    _evaluation_loop: Any = None
    _run: Any = None
    # what a run of hooktrain never does
    sanity_checking = testing = predicting = fast_dev_run = barebones = received_sigterm = interrupted = False
    overfit_batches = 0.0
    datamodule = profiler = checkpoint_callback = min_epochs = min_steps = max_time = gradient_clip_algorithm = None
    checkpoint_callbacks = ()
    num_sanity_val_steps = 0
    limit_train_batches = limit_val_batches = 1.0

    def __init__(self, slots: Slots, run: Trainer) -> None:
        super().__init__(slots)
        total, loop, evaluation = _Count(slots), _EpochLoop(slots), _EvaluationLoop(slots)
        progress, measured = _Progress(slots), _Progress(slots)
        progress._put(total=total, current=total)
        measured._put(total=_Count(slots), current=_Count(slots))
        evaluation._put(batch_progress=measured)
        loop._put(batch_progress=progress, val_loop=evaluation, _trainer=self)
        fit, connector = _FitLoop(slots), _LoggerConnector(slots)
        fit._put(epoch_loop=loop, _trainer=self)
        connector._put(_trainer=self)
        self._put(_run=run, fit_loop=fit, _logger_connector=connector, _evaluation_loop=evaluation)
        self._put(strategy=LightningStrategy(slots, run), callback_metrics={}, logged_metrics={}, pending={})
        self._put(progress_bar_metrics={}, lr_scheduler_configs=[])

    # ----------------------------------------------------------------------------------------------------- control

    @property
    def should_stop(self) -> bool:
        return bool(self._run.should_stop or self.__dict__.get("_asked", False))

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        if value and not self.should_stop:
            slot = self._slots.current
            self._run.request_stop(f"{slot.name if slot is not None else 'a callback of Lightning'} asked for it")
            self._put(_asked=True)

    def save_checkpoint(self, *given: Any, **named: Any) -> None:
        raise unmapped(
            self._slots, "trainer.save_checkpoint (checkpoints are written by the recipe's own engines)", "calls"
        )

    def log_soon(self, metrics: Mapping[str, Any]) -> None:
        """Keep metrics for the next log line."""
        self.pending.update(metrics)

    def print(self, *given: Any, **named: Any) -> None:
        """Print on rank 0."""
        if self.is_global_zero:
            print(*given, **named)

    # -------------------------------------------------------------------------------------------------------- where

    @property
    def global_step(self) -> int:
        return int(self._run.global_step)

    @property
    def current_epoch(self) -> int:
        return int(self._run.state.epoch)

    @property
    def max_epochs(self) -> int:
        return int(self._run.epochs.stop)

    @property
    def max_steps(self) -> int:
        return int(self._run.training_horizon)

    @property
    def estimated_stepping_batches(self) -> int:
        return int(self._run.training_horizon)

    @property
    def num_training_batches(self) -> int:
        return micro_batches_of_epoch(self._run)

    @property
    def num_val_batches(self) -> list[int]:
        return list(eval_sizes(self._run).values())

    @property
    def num_sanity_val_batches(self) -> list[int]:
        return []

    @property
    def enable_validation(self) -> bool:
        return bool(self._run.data.evaluation)

    @property
    def val_check_interval(self) -> float:
        """Steps between evaluations; 1.0 where there is nothing to evaluate, so that epochs are what is looked at."""
        return (self._run.recipe.eval_interval or self.max_steps) if self.enable_validation else 1.0

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
        return int(self._run.recipe.gradient_accumulation_steps)

    @property
    def log_every_n_steps(self) -> int:
        return int(self._run.recipe.log_interval)

    @property
    def gradient_clip_val(self) -> float:
        return float(self._run.recipe.gradient_clipping)

    # -------------------------------------------------------------------------------------------------------- parts

    @property
    def optimizers(self) -> list[Any]:
        return [self._run.optimizer]

    @property
    def model(self) -> Any:
        return self.lightning_module

    @property
    def logger(self) -> Any:
        return self.loggers[0]

    @property
    def train_dataloader(self) -> TrainBatches:
        return TrainBatches(self._run)

    @property
    def val_dataloaders(self) -> Any:
        made = [EvalBatches(self._run, name) for name in self._run.data.evaluation]
        return made[0] if len(made) == 1 else made or None

    @property
    def progress_bar_callback(self) -> Any:
        return next((one for one in self.callbacks if hasattr(one, "total_train_batches")), None)

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
        return str(self._run.run_dir)

    log_dir = default_root_dir

    @property
    def ckpt_path(self) -> str | None:
        return None if self._run.resume_from is None else str(self._run.resume_from)

    # -------------------------------------------------------------------------------------------------------- ranks

    @property
    def is_global_zero(self) -> bool:
        return bool(self._run.world.is_main)

    @property
    def global_rank(self) -> int:
        return int(self._run.world.rank)

    @property
    def local_rank(self) -> int:
        return int(self._run.world.local_rank)

    @property
    def world_size(self) -> int:
        return int(self._run.world.world_size)
