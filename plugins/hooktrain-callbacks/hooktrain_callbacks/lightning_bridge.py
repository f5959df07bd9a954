"""Drives Lightning's ``Callback``s and ``Logger``s in the order in which its own trainer would."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from hooktrain import HooktrainError
from hooktrain_callbacks.lightning_kinds import accelerator_of, kinds, precision_of
from hooktrain_callbacks.lightning_state import LightningState
from hooktrain_callbacks.lightning_trainer import LightningTrainer
from hooktrain_callbacks.slots import Slot, Slots
from hooktrain_callbacks.views import eval_sizes, for_lightning, is_spread, says_when_it_steps

if TYPE_CHECKING:
    from hooktrain import LossSum, Trainer

__all__ = ["LightningBridge"]

_TAKEN = frozenset({"step", "epoch", "loss", "lr", "grad_norm", "tokens"})
_MONITORS = "EarlyStopping"


class LightningBridge:
    """The callbacks of Lightning in a run.

    Args:
        slots: the callbacks and loggers, of one package.
    """

    def __init__(self, slots: Iterable[Slot]) -> None:
        found = list(slots)
        self.package = found[0].package
        self.loggers = [slot for slot in found if slot.is_logger]
        # those that watch a metric come last, so that they see what others have logged
        watching = [slot for slot in found if any(kind.__name__ == _MONITORS for kind in type(slot.callback).__mro__)]
        self.slots = Slots([slot for slot in found if slot not in watching and not slot.is_logger] + watching)
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
        self.trainer = self.slots.trainer = trainer
        model, made = trainer.strategy.unwrap(trainer.model), kinds(self.package)
        self._refuse_parts(model)
        self.stages = states.RunningStage
        self.pl = pl = LightningTrainer(self.slots, trainer)
        self.module = made.module(model, pl, trainer.device)
        dtype = getattr(trainer.strategy, "dtype", None)
        pl._put(
            state=states.TrainerState(
                status=states.TrainerStatus.RUNNING, fn=states.TrainerFn.FITTING, stage=self.stages.TRAINING
            ),
            lightning_module=self.module,
            accelerator=accelerator_of(self.package, trainer.device),
            precision_plugin=precision_of(self.package, dtype, trainer.device),
            callbacks=[slot.callback for slot in self.slots.all],
            loggers=[*(slot.callback for slot in self.loggers), made.logger(pl)],
        )
        if hasattr(trainer.scheduler, "optimizer"):
            config = import_module(f"{self.package}.utilities.types").LRSchedulerConfig
            pl.lr_scheduler_configs.append(config(trainer.scheduler, interval="step"))
        for slot in self.slots.all:  # as Lightning does, so that a callback can log
            slot.callback.log, slot.callback.log_dict = self.module.log, self.module.log_dict
        self.state = LightningState(self.slots, pl, self.module)
        if self.slots.hears("on_before_zero_grad") and says_when_it_steps(trainer):
            call = self._call
            self._hooked = trainer.optimizer.register_step_post_hook(lambda one, *_: call("on_before_zero_grad", one))
        self._log_hyperparameters()
        self._call("setup", stage=pl.state.fn)
        self.state.restore(self.kept)
        self._call("on_fit_start")
        self._call("on_train_start")

    def _refuse_parts(self, model: torch.nn.Module) -> None:
        for slot in self.slots.all:
            averages = any(kind.__name__ == "WeightAveraging" for kind in type(slot.callback).__mro__)
            if averages and is_spread(model):
                raise HooktrainError(
                    f"{slot} averages whole weights, but this strategy spreads them over the ranks; use one that does"
                    " not, such as strategy: {type: torch, data_parallel: ddp}, or leave the callback out"
                )

    def on_epoch_start(self) -> None:
        assert self.pl is not None
        rows = self.trainer.recipe.micro_batch_size * self.trainer.data_world.world_size
        self.pl._put(batch_idx=self.trainer.state.sequences // rows)  # the next one's number
        self._call("on_train_epoch_start")

    def on_epoch_end(self) -> None:
        self._call("on_train_epoch_end")

    def on_run_end(self) -> None:
        """The loop is over, and the last checkpoint is still to come."""
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
            self._call("teardown", stage=self.pl.state.fn)
            self._of_loggers("finalize", "failed" if self._failed else "success")

    # --------------------------------------------------------------------------------------------------------- step

    def on_microbatch_start(self, batch: Any) -> None:
        assert self.pl is not None
        self.pl._put(step_is_over=False)
        self._call("on_train_batch_start", batch, self.pl.batch_idx)

    def on_backward_start(self, loss: torch.Tensor) -> None:
        """Before the gradients of a micro-batch."""
        self._call("on_before_backward", loss)

    def on_backward_end(self) -> None:
        """When the gradients of a micro-batch are there."""
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
        self.pl._put(step_is_over=True)
        self._end_batch()

    def _end_batch(self) -> None:
        assert self.pl is not None
        if self._last is None:
            return
        (batch, loss), self._last = self._last, None
        number = self.pl.batch_idx
        progress = self.pl.fit_loop.epoch_loop.batch_progress
        progress._put(is_last_batch=number + 1 >= self.pl.num_training_batches)
        if self.slots.hears("on_train_batch_end"):
            self._call("on_train_batch_end", {"loss": loss.total / max(loss.denominator, 1)}, batch, number)
        self.pl._put(batch_idx=number + 1)

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
        """Before the loss of a micro-batch, in evaluation as in training."""
        if self.evaluating:
            assert self.pl is not None
            self._place = next(self._places, (0,))
            count = self.pl._evaluation_loop.batch_progress.total
            count._put(ready=count.ready + 1)
            self._call("on_validation_batch_start", batch, *self._place)

    def on_loss_end(self, batch: Any, loss: LossSum) -> None:
        """After the loss of a micro-batch, in evaluation as in training."""
        if self.evaluating and self.slots.hears("on_validation_batch_end"):
            outputs = {"loss": loss.total / max(loss.denominator, 1)}
            self._call("on_validation_batch_end", outputs, batch, *self._place)

    def on_evaluate_end(self, metrics: Mapping[str, float]) -> None:
        self.evaluating = False
        self._call("on_validation_epoch_end")
        if metrics:  # else it was left out half-way, and is made up for
            self._know(metrics)
            self._call("on_validation_end")
        self._stage(self.stages.TRAINING)

    # --------------------------------------------------------------------------------------------------------- logs

    def collect_metrics(self) -> Mapping[str, Any]:
        if self.pl is None:
            return {}
        found, self.pl.__dict__["pending"] = self.pl.pending, {}
        return {name: value for name, value in found.items() if name not in _TAKEN}

    def on_log(self, metrics: Mapping[str, float]) -> None:
        self._know(metrics)
        if self.trainer.world.is_main:
            self._of_loggers("log_metrics", dict(metrics), step=self.trainer.global_step)
            self._of_loggers("save")

    def _know(self, metrics: Mapping[str, float]) -> None:
        """Let callbacks find metrics where Lightning has them."""
        assert self.pl is not None
        named = for_lightning(metrics)
        self.pl.callback_metrics.update({name: torch.tensor(float(value)) for name, value in named.items()})
        self.pl.logged_metrics.update({name: torch.tensor(float(value)) for name, value in metrics.items()})
        shown = ("train_loss", "val_loss")
        self.pl.progress_bar_metrics.update({name: named[name] for name in shown if name in named})

    def _log_hyperparameters(self) -> None:
        if self.trainer.world.is_main:
            self._of_loggers("log_hyperparams", self.trainer.recipe.as_dict())

    def _of_loggers(self, method: str, *given: Any, **named: Any) -> None:
        for slot in self.loggers:
            if not slot.disabled:
                try:
                    getattr(slot.callback, method)(*given, **named)
                except Exception as problem:
                    self.slots.failed(slot, method, problem)

    # -------------------------------------------------------------------------------------------------------- state

    def collect_state(self) -> Mapping[str, Any]:
        # a checkpoint may be written before the callbacks have been given back what the one before it held
        return self.kept if self.state is None else self.state.collect()

    def restore_state(self, state: Mapping[str, Any]) -> None:
        self.kept = state

    # ------------------------------------------------------------------------------------------------------- events

    def _call(self, event: str, *given: Any, **named: Any) -> None:
        self.slots.call(event, self.pl, self.module, *given, **named)

    def _stage(self, stage: Any) -> None:
        assert self.pl is not None
        self.pl.state.stage = stage
