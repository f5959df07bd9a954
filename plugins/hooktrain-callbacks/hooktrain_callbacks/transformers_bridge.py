"""Calls ``transformers.TrainerCallback``s with transformers' own state, control and arguments."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooktrain import HooktrainError, StrategyDefaults, did_you_mean, member
from hooktrain_callbacks.arguments import training_arguments
from hooktrain_callbacks.callback_handler import CallbackHandler, LoadedCallback
from hooktrain_callbacks.compat import (
    averages_whole_weights,
    close_writer,
    end_as_failed,
    stops_early,
    supports_step_hooks,
)
from hooktrain_callbacks.dataloaders import EvalBatches, TrainBatches, epoch_of
from hooktrain_callbacks.metric_names import for_transformers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hooktrain import Trainer

__all__ = ["TransformersBridge"]

_FLAGS = ("should_save", "should_evaluate", "should_log", "should_epoch_stop", "should_training_stop")


class TransformersBridge:
    """The callbacks of transformers in a run.

    Args:
        callbacks: the callbacks.
        arguments: the recipe's ``callbacks.arguments``.
    """

    def __init__(self, callbacks: Iterable[LoadedCallback], arguments: Mapping[str, Any]) -> None:
        self.handler, self.arguments = CallbackHandler(callbacks), arguments
        self.kept: Mapping[str, Any] = {}
        self.state: Any = None
        self.began = self.evaluation_began = 0.0
        self.steps_before = 0
        self.evaluating = False
        self._hooked: list[Any] = []

    # ------------------------------------------------------------------------------------------------ run, epoch

    def on_train_start(self, trainer: Trainer) -> None:
        from transformers.trainer_callback import TrainerControl, TrainerState

        self.trainer = self.handler.trainer = trainer
        self.args = training_arguments(trainer, self.arguments)
        self.control = TrainerControl()
        args, world = self.args, trainer.world
        self.state = TrainerState(
            max_steps=trainer.training_horizon,
            logging_steps=args.logging_steps,
            eval_steps=args.eval_steps,
            save_steps=args.save_steps,
            train_batch_size=args.per_device_train_batch_size,
            num_train_epochs=args.num_train_epochs,
            is_local_process_zero=world.local_rank == 0,
            is_world_process_zero=world.is_main,
        )
        sets = list(trainer.data.evaluation)
        self.given = {
            "model": trainer.strategy.unwrap(trainer.model),
            "processing_class": trainer.tokenizer,
            "tokenizer": trainer.tokenizer,  # its name until transformers 5
            "optimizer": trainer.optimizer,
            "lr_scheduler": trainer.scheduler,
            "train_dataloader": TrainBatches(trainer),
            "eval_dataloader": EvalBatches(trainer, *sets) if sets else None,
        }
        self._refuse_sharded()
        self._watch_optimizer()
        self._fire("on_init_end")
        self._restore()
        self.began, self.steps_before = time.perf_counter(), trainer.global_step
        self._fire("on_train_begin")

    def _refuse_sharded(self) -> None:
        for loaded in self.handler.callbacks:
            if averages_whole_weights(loaded.callback) and member(
                self.trainer.strategy, StrategyDefaults, "shards_weights"
            ):
                raise HooktrainError(
                    f"{loaded} averages complete weights, but this strategy shards them over the ranks; use one that"
                    " does not, such as strategy: {type: torch, data_parallel: ddp}, or remove the callback"
                )

    def on_epoch_start(self) -> None:
        self._fire("on_epoch_begin")

    def on_epoch_end(self) -> None:
        self._fire("on_epoch_end", should_save=_saves_epoch(self.trainer))

    def on_train_end(self) -> None:
        seconds, steps = time.perf_counter() - self.began, self.trainer.global_step - self.steps_before
        figures = {"train_runtime": round(seconds, 4), "train_steps_per_second": round(steps / seconds, 3)}
        self._log(figures)
        self._fire("on_train_end")

    def on_exception(self, exception: BaseException) -> None:
        for loaded in self.handler.callbacks:
            try:
                end_as_failed(loaded.callback)
            except Exception as problem:
                self.handler.failed(loaded, "the end of a failed run", problem)

    def on_teardown(self) -> None:
        for loaded in self.handler.callbacks:  # after a failure on_train_end is not called
            close_writer(loaded.callback)
        while self._hooked:
            self._hooked.pop().remove()

    # -------------------------------------------------------------------------------------------------------- step

    def on_step_start(self) -> None:
        self._fire("on_step_begin")

    def on_microbatch_end(self, batch: Any, loss: Any) -> None:
        if not self.trainer.is_last_microbatch:
            self._fire("on_substep_end")

    def on_optimizer_step_start(self) -> None:
        if not self._hooked:
            self._fire("on_pre_optimizer_step")

    def on_optimizer_step_end(self) -> None:
        if not self._hooked:
            self._fire("on_optimizer_step")

    def on_step_end(self) -> None:
        trainer, recipe = self.trainer, self.trainer.recipe
        step, last = trainer.global_step, trainer.should_stop
        self._fire(
            "on_step_end",
            should_log=last or step % recipe.log_interval == 0,
            should_evaluate=trainer.state.evaluation_due,
            should_save=_saves_step(trainer),
            should_training_stop=last,
        )

    def _watch_optimizer(self) -> None:
        """Have a torch optimizer call the events of its step: after clipping, and before the gradients are cleared."""
        optimizer = self.trainer.optimizer
        if supports_step_hooks(self.trainer):
            if self.handler.implements("on_pre_optimizer_step"):
                hook = optimizer.register_step_pre_hook(lambda *_: self._fire("on_pre_optimizer_step"))
                self._hooked.append(hook)
            if self.handler.implements("on_optimizer_step"):
                self._hooked.append(optimizer.register_step_post_hook(lambda *_: self._fire("on_optimizer_step")))

    # -------------------------------------------------------------------------------- evaluation, log, checkpoint

    def on_evaluate_start(self) -> None:
        self.evaluation_began, self.evaluating = time.perf_counter(), True

    def on_loss_end(self, batch: Any, loss: Any) -> None:
        """Call the event after the loss of an evaluation's micro-batch; it is called in training too."""
        if self.evaluating:
            self._fire("on_prediction_step")

    def on_evaluate_end(self, metrics: Mapping[str, float]) -> None:
        self.evaluating = False
        if not metrics:
            return  # it was interrupted, and will be repeated
        found = for_transformers(metrics)
        found["eval_runtime"] = round(time.perf_counter() - self.evaluation_began, 4)
        logs = self._log(found)
        self._fire("on_evaluate", metrics=logs)
        self._require_watched(found)
        self._note_best(found)

    def _require_watched(self, metrics: Mapping[str, float]) -> None:
        """Refuse early stopping on a metric that there is none of: it would wait for it without a word."""
        wanted = self.args.metric_for_best_model or ""
        name = wanted if wanted.startswith("eval_") else f"eval_{wanted}"
        for loaded in self.handler.callbacks:
            if stops_early(loaded.callback) and not loaded.disabled and name not in metrics:
                meant = did_you_mean(name, metrics)
                text = (
                    f"{loaded} watches callbacks.arguments.metric_for_best_model: given '{wanted}', which no evaluation"
                    f" has{meant}; it has {', '.join(metrics)}"
                )
                self.handler.failed(loaded, "on_evaluate", HooktrainError(text))

    def _note_best(self, metrics: Mapping[str, float]) -> None:
        wanted = self.args.metric_for_best_model
        value = metrics.get(wanted if (wanted or "").startswith("eval_") else f"eval_{wanted}")
        if value is None:
            return
        best = self.state.best_metric
        if best is None or (value > best if self.args.greater_is_better else value < best):
            self.state.best_metric, self.state.best_global_step = value, self.trainer.global_step

    def on_log(self, metrics: Mapping[str, float]) -> None:
        logs = {name: value for name, value in metrics.items() if not name.startswith("eval/")}
        if "loss" in logs:  # the line of an evaluation alone was logged with it
            self._log(for_transformers(logs))

    def _log(self, logs: dict[str, float]) -> dict[str, float]:
        logs["epoch"] = round(epoch_of(self.trainer), 4)
        self.state.log_history.append({**logs, "step": self.trainer.global_step})
        self._fire("on_log", logs=dict(logs))
        return logs

    def on_checkpoint_end(self, path: Path) -> None:
        if self.state.best_global_step == self.trainer.global_step:
            self.state.best_model_checkpoint = str(path)
        if not self.handler.implements("on_save"):
            return
        # where callbacks look for what has been saved
        link = Path(self.args.output_dir) / f"checkpoint-{self.trainer.global_step}"
        linked = self.trainer.world.is_main and not link.exists() and path.is_dir()
        if linked:
            link.unlink(missing_ok=True)
            link.symlink_to(path.resolve(), target_is_directory=True)
        try:
            self._fire("on_save")
        finally:
            if linked:
                link.unlink(missing_ok=True)

    # ------------------------------------------------------------------------------------------------------- events

    def _fire(self, event: str, *, metrics: Any = None, logs: Any = None, **due: bool) -> None:
        """Call an event, and pass on what callbacks request.

        Args:
            event: the method's name.
            metrics: for ``on_evaluate``.
            logs: for ``on_log``.
            due: the control flags that the recipe itself sets now.
        """
        if not self.handler.implements(event):
            return
        state, control, trainer = self.state, self.control, self.trainer
        state.global_step, state.epoch = trainer.global_step, epoch_of(trainer)
        state.num_input_tokens_seen = trainer.state.tokens
        for flag in _FLAGS[:-1]:
            setattr(control, flag, due.get(flag, False))
        known = dict(due)
        if due.get("should_training_stop"):
            control.should_training_stop = True

        def then(loaded: LoadedCallback, result: Any) -> None:
            self.control = self.control if result is None else result
            self._request(loaded, event, known)

        more = {"metrics": metrics} if metrics is not None else {"logs": logs} if logs is not None else {}
        self.handler.call(event, self.args, state, self.control, then=then, **self.given, **more)

    def _request(self, loaded: LoadedCallback, event: str, known: dict[str, bool]) -> None:
        """Request from the engine what a callback has switched on.

        Args:
            loaded: the callback that has just been called.
            event: the event.
            known: flags that the recipe has set, or an earlier callback.
        """
        trainer = self.trainer
        requests: dict[str, Callable[[], None]] = {
            "should_save": trainer.request_save,
            "should_evaluate": trainer.request_evaluation,
            "should_log": trainer.request_log,
            "should_epoch_stop": trainer.request_epoch_end,
            "should_training_stop": lambda: trainer.request_stop(f"requested by {loaded.name}"),
        }
        for flag, request in requests.items():
            is_on, was_on = bool(getattr(self.control, flag)), known.get(flag, False)
            if is_on and not was_on and not (flag == "should_training_stop" and trainer.should_stop):
                request()
                known[flag] = True
            elif was_on and not is_on and flag in ("should_save", "should_evaluate"):
                known[flag] = False
                what = "checkpoint" if flag == "should_save" else "eval_interval"
                raise HooktrainError(
                    f"{loaded} switched off control.{flag} in {event}, but a callback cannot cancel what the recipe"
                    f" schedules; change {what} in the recipe, or remove the callback"
                )

    # -------------------------------------------------------------------------------------------------------- state

    def collect_state(self) -> dict[str, Any]:
        """Return what a resume needs: the state of each callback that has one, and the best evaluation so far."""
        if self.state is None:  # the callbacks have not been restored from the last checkpoint yet
            return dict(self.kept)
        kept = {}
        for key, loaded in self._stateful():
            try:
                kept[key] = loaded.callback.state()
            except Exception as problem:
                self.handler.failed(loaded, "state", problem)
        # not the log_history, whose times would make every resume look different; metrics.jsonl has it
        names = ("best_metric", "best_global_step", "best_model_checkpoint")
        return {"callbacks": kept, "state": {name: getattr(self.state, name) for name in names}}

    def restore_state(self, state: Mapping[str, Any]) -> None:
        self.kept = state

    def _restore(self) -> None:
        """Restore the saved state; the constructor's arguments stay those of the recipe."""
        if not self.kept:
            return
        for name, value in self.kept["state"].items():
            setattr(self.state, name, value)
        for key, loaded in self._stateful():
            for name, value in self.kept["callbacks"].get(key, {}).get("attributes", {}).items():
                setattr(loaded.callback, name, value)

    def _stateful(self) -> Iterator[tuple[str, LoadedCallback]]:
        """Yield the callbacks that have a state, under names that do not depend on the others in the list."""
        from transformers.trainer_callback import ExportableState

        counts: dict[str, int] = {}
        for loaded in self.handler.callbacks:
            if isinstance(loaded.callback, ExportableState) and not loaded.disabled:
                kind = type(loaded.callback)
                name = f"{kind.__module__}.{kind.__qualname__}"
                counts[name] = counts.get(name, 0) + 1
                yield f"{name}#{counts[name]}", loaded


def _saves_step(trainer: Trainer) -> bool:
    configs = (engine.config for engine in trainer.checkpoint_engines if engine.config.enabled)
    return any(c.save_every_n_steps and trainer.global_step % c.save_every_n_steps == 0 for c in configs)


def _saves_epoch(trainer: Trainer) -> bool:
    configs = (engine.config for engine in trainer.checkpoint_engines if engine.config.enabled)
    whole = (c for c in configs if c.save_every_n_epochs and not c.save_every_n_epochs % 1)
    return any((trainer.state.epoch + 1) % c.save_every_n_epochs == 0 for c in whole)
