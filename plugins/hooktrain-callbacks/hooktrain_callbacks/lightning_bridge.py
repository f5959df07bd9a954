"""Calls Lightning's ``Callback``s and ``Logger``s in the order of Lightning's own trainer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from hooktrain import HooktrainError, StrategyDefaults, masked, member
from hooktrain_callbacks.callback_handler import CallbackHandler, LoadedCallback
from hooktrain_callbacks.compat import averages_while_training, averages_whole_weights, supports_step_hooks
from hooktrain_callbacks.dataloaders import eval_sizes
from hooktrain_callbacks.lightning_classes import accelerator_of, derived_classes, precision_of
from hooktrain_callbacks.lightning_state import LightningState
from hooktrain_callbacks.lightning_trainer import LightningTrainer
from hooktrain_callbacks.metric_names import for_lightning
from hooktrain_callbacks.proxy import assign

if TYPE_CHECKING:
    from hooktrain import LossSum, Trainer

__all__ = ["LightningBridge"]

_ENGINE_METRICS = frozenset({"step", "epoch", "loss", "lr", "grad_norm", "tokens"})
"""The engine's metrics, which no callback replaces."""


class LightningBridge:
    """The callbacks of Lightning in a run.

    Args:
        callbacks: the callbacks and loggers, of one package.
    """

    def __init__(self, callbacks: Iterable[LoadedCallback]) -> None:
        found = list(callbacks)
        self.package = found[0].package
        self.loggers = [loaded for loaded in found if loaded.is_logger]
        others = [loaded for loaded in found if not loaded.is_logger]
        # early stopping comes last, so that it sees what other callbacks have logged
        others.sort(key=lambda loaded: _derives_from(loaded.callback, "EarlyStopping"))
        self.handler = CallbackHandler(others)
        self.kept: Mapping[str, Any] = {}
        self.pl: LightningTrainer | None = None
        self.evaluating = False
        self._ended = self._failed = False
        self.state: LightningState | None = None
        self._hooked: Any = None
        self._last: tuple[Any, LossSum] | None = None
        self._places: Iterator[tuple[int, ...]] = iter(())
        self._place: tuple[int, ...] = ()

    # --------------------------------------------------------------------------------------------------- run, epoch

    def on_train_start(self, trainer: Trainer) -> None:
        states = import_module(f"{self.package}.trainer.states")
        import_module("lightning_utilities.core.rank_zero").rank_zero_only.rank = trainer.world.rank
        self.trainer = self.handler.trainer = trainer
        model, classes = trainer.strategy.unwrap(trainer.model), derived_classes(self.package)
        self._refuse_sharded(trainer)
        self.stages = states.RunningStage
        self.pl = pl = LightningTrainer(self.handler, trainer)
        self.module = classes.module(model, pl, trainer.device)
        assign(
            pl,
            state=states.TrainerState(
                status=states.TrainerStatus.RUNNING, fn=states.TrainerFn.FITTING, stage=self.stages.TRAINING
            ),
            lightning_module=self.module,
            accelerator=accelerator_of(self.package, trainer.device),
            precision_plugin=precision_of(
                self.package, member(trainer.strategy, StrategyDefaults, "dtype"), trainer.device
            ),
            callbacks=[loaded.callback for loaded in self.handler.callbacks],
            loggers=[*(loaded.callback for loaded in self.loggers), classes.logger(pl)],
        )
        if isinstance(trainer.scheduler, torch.optim.lr_scheduler.LRScheduler):
            config = import_module(f"{self.package}.utilities.types").LRSchedulerConfig
            pl.lr_scheduler_configs.append(config(trainer.scheduler, interval="step"))
        for loaded in self.handler.callbacks:  # as Lightning does, so that a callback can log
            loaded.callback.log, loaded.callback.log_dict = self.module.log, self.module.log_dict
        self.state = LightningState(self.handler, pl, self.module)
        if self.handler.implements("on_before_zero_grad") and supports_step_hooks(trainer):
            call = self._call
            self._hooked = trainer.optimizer.register_step_post_hook(lambda one, *_: call("on_before_zero_grad", one))
        self._log_hyperparameters()
        self._call("setup", stage=pl.state.fn)
        self.state.restore(self.kept)
        self._call("on_fit_start")
        self._call("on_train_start")

    def _refuse_sharded(self, trainer: Trainer) -> None:
        shards = member(trainer.strategy, StrategyDefaults, "shards_weights")
        for loaded in self.handler.callbacks:
            if shards and averages_whole_weights(loaded.callback):
                raise HooktrainError(
                    f"{loaded} averages complete weights, but this strategy shards them over the ranks; use one that"
                    " does not, such as strategy: {type: torch, data_parallel: ddp}, or remove the callback"
                )

    def on_epoch_start(self) -> None:
        assert self.pl is not None
        rows = self.trainer.recipe.micro_batch_size * self.trainer.data_world.world_size
        assign(self.pl, batch_idx=self.trainer.state.sequences // rows)  # the next one's number
        self._call("on_train_epoch_start")

    def on_epoch_end(self) -> None:
        self._call("on_train_epoch_end")

    def on_run_end(self) -> None:
        """End the training, before the last checkpoint is written."""
        if not self._ended:
            self._ended = True
            self._call("on_train_end")

    def on_train_end(self) -> None:
        self.on_run_end()
        self._call("on_fit_end")

    def on_exception(self, exception: BaseException) -> None:
        if self.pl is not None:
            self._failed = True
            self._call("on_exception", exception)

    def on_teardown(self) -> None:
        if self._hooked is not None:
            self._hooked.remove()
        if self.pl is not None:
            if not self._failed:  # as Lightning, after which a messenger would say that all is well
                self._call("teardown", stage=self.pl.state.fn)
            self._call_loggers("finalize", "failed" if self._failed else "success")

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Have the model hold the averages of weights inside, as in an evaluation, for what exports it meanwhile."""
        chosen = [
            loaded
            for loaded in self.handler.callbacks
            if averages_while_training(loaded.callback) and not loaded.disabled and not self._ended
        ]
        chosen = [] if self.pl is None else chosen
        for loaded in chosen:
            loaded.callback.on_validation_epoch_start(self.pl, self.module)
        try:
            yield
        finally:
            for loaded in reversed(chosen):
                loaded.callback.on_validation_epoch_end(self.pl, self.module)

    # --------------------------------------------------------------------------------------------------------- step

    def on_microbatch_start(self, batch: Any) -> None:
        assert self.pl is not None
        assign(self.pl, step_is_over=False)
        self._call("on_train_batch_start", batch, self.pl.batch_idx)

    def on_backward_start(self, loss: torch.Tensor) -> None:
        """Call the event before the backward pass of a micro-batch."""
        self._call("on_before_backward", loss)

    def on_backward_end(self) -> None:
        """Call the event after the backward pass of a micro-batch."""
        self._call("on_after_backward")

    def on_microbatch_end(self, batch: Any, loss: LossSum) -> None:
        self._last = (batch, loss)
        if not self.trainer.is_last_microbatch:
            self._end_batch()

    def on_optimizer_step_start(self) -> None:
        self._call("on_before_optimizer_step", self.trainer.optimizer)

    def on_optimizer_step_end(self) -> None:
        if self._hooked is None:
            self._call("on_before_zero_grad", self.trainer.optimizer)

    def on_step_end(self) -> None:
        assert self.pl is not None
        assign(self.pl, step_is_over=True)
        self._end_batch()

    def _end_batch(self) -> None:
        assert self.pl is not None
        if self._last is None:
            return
        (batch, loss), self._last = self._last, None
        number = self.pl.batch_idx
        progress = self.pl.fit_loop.epoch_loop.batch_progress
        assign(progress, is_last_batch=number + 1 >= self.pl.num_training_batches)
        if self.handler.implements("on_train_batch_end"):
            self._call("on_train_batch_end", {"loss": loss.total / max(loss.denominator, 1)}, batch, number)
        assign(self.pl, batch_idx=number + 1)

    # -------------------------------------------------------------------------------------------------- evaluation

    def on_evaluate_start(self) -> None:
        self._stage(self.stages.VALIDATING)
        self.evaluating = True
        sizes = list(eval_sizes(self.trainer).values())
        several = len(sizes) > 1
        self._places = ((at, of) if several else (at,) for of, size in enumerate(sizes) for at in range(size))
        self._call("on_validation_start")
        self._call("on_validation_epoch_start")

    def on_loss_start(self, batch: Any) -> None:
        """Call the event before the loss of an evaluation's micro-batch; it is called in training too."""
        if self.evaluating:
            assert self.pl is not None
            self._place = next(self._places, (0,))
            count = self.pl.evaluation_count
            assign(count, ready=count.ready + 1)
            self._call("on_validation_batch_start", batch, *self._place)

    def on_loss_end(self, batch: Any, loss: LossSum) -> None:
        """Call the event after the loss of an evaluation's micro-batch; it is called in training too."""
        if self.evaluating and self.handler.implements("on_validation_batch_end"):
            outputs = {"loss": loss.total / max(loss.denominator, 1)}
            self._call("on_validation_batch_end", outputs, batch, *self._place)

    def on_evaluate_end(self, metrics: Mapping[str, float]) -> None:
        self.evaluating = False
        self._call("on_validation_epoch_end")
        if metrics:  # else it was interrupted, and will be repeated
            self._publish(metrics)
            self._call("on_validation_end")
        self._stage(self.stages.TRAINING)

    # --------------------------------------------------------------------------------------------------------- logs

    def collect_metrics(self) -> Mapping[str, Any]:
        if self.pl is None:
            return {}
        found = dict(self.pl.pending)
        self.pl.pending.clear()
        return {name: value for name, value in found.items() if name not in _ENGINE_METRICS}

    def on_log(self, metrics: Mapping[str, float]) -> None:
        self._publish(metrics)
        if self.trainer.world.is_main:
            self._call_loggers("log_metrics", dict(metrics), step=self.trainer.global_step)
            self._call_loggers("save")

    def _publish(self, metrics: Mapping[str, float]) -> None:
        """Store metrics where callbacks of Lightning look for them."""
        assert self.pl is not None
        named = for_lightning(metrics)
        self.pl.callback_metrics.update({name: torch.tensor(float(value)) for name, value in named.items()})
        self.pl.logged_metrics.update({name: torch.tensor(float(value)) for name, value in metrics.items()})
        shown = ("train_loss", "val_loss")
        self.pl.progress_bar_metrics.update({name: named[name] for name in shown if name in named})

    def _log_hyperparameters(self) -> None:
        if self.trainer.world.is_main:
            self._call_loggers("log_hyperparams", masked(self.trainer.recipe.as_dict()))

    def _call_loggers(self, method: str, *arguments: Any, **named: Any) -> None:
        for loaded in self.loggers:
            if not loaded.disabled:
                try:
                    getattr(loaded.callback, method)(*arguments, **named)
                except Exception as problem:
                    self.handler.failed(loaded, method, problem)

    # -------------------------------------------------------------------------------------------------------- state

    def collect_state(self) -> Mapping[str, Any]:
        # a checkpoint may be written before the callbacks have been restored from the last one
        return self.kept if self.state is None else self.state.collect()

    def restore_state(self, state: Mapping[str, Any]) -> None:
        self.kept = state

    # ------------------------------------------------------------------------------------------------------- events

    def _call(self, event: str, *arguments: Any, **named: Any) -> None:
        self.handler.call(event, self.pl, self.module, *arguments, **named)

    def _stage(self, stage: Any) -> None:
        assert self.pl is not None
        self.pl.state.stage = stage


def _derives_from(callback: Any, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(callback).__mro__)
