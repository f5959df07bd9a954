"""The Trainer: it holds the parts, calls every event and every loop hook.

What a loop hook *does* by default stands in ``default_loop``, how the parts are built in ``build``, and how a recipe
with objects alongside it is taken in ``lifecycle``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from hooktrain.errors import HooktrainError, LoopHookError, described, failure_of
from hooktrain.masking import mask_text
from hooktrain.plugin.manager import PluginHost
from hooktrain.protocols import (
    CheckpointEngine,
    Loader,
    Scheduler,
    SchedulerDefaults,
    Strategy,
    StrategyDefaults,
    member,
)
from hooktrain.recipe.model import Recipe
from hooktrain.renamed import no_attribute
from hooktrain.training.batch_keys import HOST_KEYS
from hooktrain.training.batch_size import with_batch_size
from hooktrain.training.build import (
    DataParts,
    ModelParts,
    build_data_parts,
    build_model_parts,
    make_part,
    open_strategy,
    settle_run,
)
from hooktrain.training.checkpointing import Saving
from hooktrain.training.control import Agreed, Requests, require_disableable
from hooktrain.training.dataloader import evaluation_batches
from hooktrain.training.diagnostics import (
    explain,
    other_sums,
    require_complete_epoch,
    require_finished,
    wrong_answer,
    wrong_loss,
)
from hooktrain.training.finite_weights import FiniteWeights
from hooktrain.training.held_effects import HeldEffects, hold_effects
from hooktrain.training.intervals import evaluation_due
from hooktrain.training.lifecycle import NO_RECIPE, checkpoint_path, export_config, save_folder, structured
from hooktrain.training.log_line import read_metrics
from hooktrain.training.metrics import Meter
from hooktrain.training.random_state import RandomState
from hooktrain.training.run_record import RunRecorder
from hooktrain.training.skipped_steps import count_skipped, require_trained, require_updates, uncounted
from hooktrain.training.watchdog import Watchdog
from hooktrain.types import Batch, BatchCounts, Data, LossSum, OptimizerStep, StepOutput, TrainerState, World

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Trainer"]


class Trainer:
    """One run of a recipe, with plugins and with objects passed from Python.

    .. code-block:: python

        trainer = hooktrain.Trainer({"optimizer": {"lr": 1e-5}}, model="Qwen/Qwen3-0.6B", train_dataset=rows)
        trainer.run()
        trainer.save("fine-tuned-model")

    Attributes:
        recipe: what is run, structured.
        host: the plugins.
        hooks: every hook, to be called with keyword arguments.
        state: what a checkpoint holds of the loop.
        history: every log line of this process, the oldest first, as ``on_log`` was given them.
        tokenizer, data, loss, model, optimizer, scheduler, strategy, checkpoint_engines, loader: the parts, once they
            have been built. After the run ``model`` is the trained model in evaluation mode; a strategy that spreads
            the weights over ranks leaves each with its share.
        models, trained: further models by name, as plugins returned them from ``make_models``; and ``model``, or one
            module of it and of the trainable ones of these, for ``strategy.trained_state``.
        run_dir: folder of the run's files.
        denominator: what the loss of the current step is divided by: the sum of what its micro-batches contribute, over
            the accumulation window and all ranks.
        exit_status: the status with which ``hooktrain train`` ends, as whoever requested the stop gave it.
        leaves_epoch: whether the rest of the current epoch is to be skipped.
        skip_reason: why this step is not to update the weights; a hook before the update sets it, on all ranks alike.
        random_state: the random numbers' part of a save: a checkpoint engine keeps ``random_state.to_save()`` of each
            rank, and hands it to ``random_state.resume(state)`` when it loads.
    """

    strategy: Strategy
    tokenizer: Any
    data: Data
    loss: Callable[[Module, Batch, float], LossSum]
    model: Module
    models: Mapping[str, Module]
    trained: Module
    optimizer: Optimizer
    scheduler: Scheduler
    checkpoint_engines: Sequence[CheckpointEngine]
    loader: Loader
    data_world: World
    divide: Callable[[Batch], Batch]
    run_dir: Path
    last_lr: float

    def __init__(
        self,
        recipe: Recipe | Mapping[str, Any] | Path | str = NO_RECIPE,
        host: PluginHost | None = None,
        *,
        model: Module | Path | str | None = None,
        tokenizer: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        data: Data | None = None,
        loss: Callable[[Module, Batch, float], LossSum] | None = None,
        optimizer: Callable[[Module], Optimizer] | None = None,
        scheduler: Callable[[Optimizer, int], Scheduler] | None = None,
        plugins: Sequence[object] = (),
        switches: Sequence[str] = (),
        overrides: Sequence[str] = (),
        world: World | None = None,
        resume_from: Path | str | None = None,
    ) -> None:
        """Take a recipe, and what there is alongside it; nothing is loaded before :meth:`run`.

        Args:
            recipe: a mapping as a YAML file would hold it, or the file; everything else has a default.
            host: the plugins, where the recipe has been structured already, as ``hooktrain.load`` does.
            model: a torch module, which is trained in place; or a folder or a name on the hub.
            tokenizer: an object, a folder or a name; the model's own when omitted.
            train_dataset: rows in any format that a source may have (a list of mappings, a ``datasets.Dataset``, or its
                ``train`` of several; a torch Dataset), read once and prepared as a source's are; or an iterable or a
                function that returns an iterator, read while training; or what ``data.sources`` takes as text.
            eval_dataset: such rows, which are evaluated as ``eval``, or a mapping of names to them.
            data: a ``hooktrain.Data`` of rows that are ready for a model, in the place of data sets.
            loss: ``loss(model, batch, denominator) -> LossSum``, in the place of the recipe's.
            optimizer: a function of the model in its final form, adapters and shards included.
            scheduler: a function of optimizer and number of optimizer steps.
            plugins: instances or classes with hook implementations, or modules.
            switches: ``name``, ``no:name`` and ``no:*`` for installed plugins, as ``-p`` takes them.
            overrides: ``key=value``, as ``-o`` takes them.
            world: this process and how many there are; read from the environment, as torchrun sets it.
            resume_from: a checkpoint to resume from, instead of the newest one of an engine with ``auto_resume``.

        Raises:
            RecipeError: with everything that is wrong in the recipe, and what is given twice.
            PluginError: when a plugin cannot be loaded, or plugins clash.
        """
        objects = {
            "model": model,
            "tokenizer": tokenizer,
            "train_dataset": train_dataset,
            "eval_dataset": eval_dataset,
            "data": data,
            "loss": loss,
            "optimizer": optimizer,
            "scheduler": scheduler,
        }
        if isinstance(recipe, Recipe):
            more = [name for name, value in objects.items() if value is not None]
            more += [name for name, value in (("plugins", plugins), ("switches", switches)) if value]
            if host is None or more or overrides:
                raise TypeError(
                    "Trainer: a structured Recipe comes with its host, as hooktrain.load returns both, and with nothing"
                    " else alongside it; give a mapping or a file instead"
                )
            self.recipe, self.host = recipe, host
        elif host is not None:
            raise TypeError("Trainer: a host comes with a structured Recipe, as hooktrain.load returns both")
        else:
            self.recipe, self.host = structured(recipe, objects, plugins, switches, overrides)
        self.hooks = self.host.hooks
        self.world = world or World.from_environment()
        self.recipe = self.recipe.for_ranks(self.world)
        start = self.host.start_folder  # a plugin may change the working directory
        self.run_dir = start / (self.recipe.run_dir or Path("runs") / self.recipe.name)
        self.resume_from = None if resume_from is None else start / checkpoint_path(resume_from, "resume")
        self.run_record = RunRecorder(self.run_dir, self.recipe.name, self.world.world_size)
        self.state = TrainerState()
        self.history: list[Mapping[str, float]] = []
        self._held = self._ran = self._opened = self._owns_run_dir = self._built = self._closed = False
        self._failure: BaseException | None = None
        self.effects: HeldEffects | None = None
        self.meter, self.denominator = Meter(), 0.0
        self.exit_status, self.skip_reason = 0, ""
        self.due_checkpoint_engines: list[CheckpointEngine] = []
        self.leaves_epoch, self.checkpoint_reason = False, ""
        self._counts: dict[int, BatchCounts] = {}
        self._sums: list[Mapping[str, Tensor]] = []
        self._sum_names: frozenset[str] | None = None
        self._unit = ""
        self._step_tokens = self._step_targets = self._step_sequences = self._first_step = 0
        self.requests, self.saving, self._alone = Requests(), Saving(), self.world.world_size == 1
        self.random_state, self.finite_weights = RandomState(), FiniteWeights()
        self._absent_plugins: dict[str, Any] = {}
        self.host.error_policy.bind(self)
        self.watchdog = Watchdog(self)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise no_attribute("Trainer", name)

    # ------------------------------------------------------------------------------------------ beginning and end

    def prepare(self) -> None:
        """Build the parts, unless they are there; :meth:`run` does so automatically.

        Raises:
            HooktrainError: whatever is wrong with a part; or that the run is over and its strategy is closed.
        """
        if self._closed:
            if not (self._built and member(self.strategy, StrategyDefaults, "usable_when_closed")):
                raise HooktrainError(
                    "trainer: the run is over, and what connected its ranks or held its weights is gone; do this inside"
                    " `with hooktrain.Trainer(...) as trainer:`, after trainer.run()"
                )
        elif not self._built:
            with self._explained():
                self.strategy = open_strategy(self.host, self.recipe, self.world)
                self._opened = True
                self.recipe = with_batch_size(self)
                self._take(build_data_parts(self))
                self._owns_run_dir = True
                self.resume_from = settle_run(self)  # before the model: it takes minutes to find out otherwise
                self._take(build_model_parts(self))
                self._built = True
                self.effects = hold_effects(self)

    @property
    def run_id(self) -> str:
        """The id of this run, which one that resumes it in its folders keeps."""
        return self.run_record.record.id

    @property
    def owns_run_dir(self) -> bool:
        """Whether the run may write into its folder; not where another run holds it, or it is another one by now."""
        return self._owns_run_dir and self.run_record.has_folder

    def _take(self, parts: DataParts | ModelParts) -> None:
        """Keep built parts as attributes of their names."""
        for item in attrs.fields(type(parts)):
            setattr(self, item.name, getattr(parts, item.name))

    def run(self) -> TrainerState:
        """Build the parts, resume if there is something to resume from, train, and tear down whatever happens.

        Inside ``with trainer:`` everything stays up until the block ends.

        Returns:
            The state, with ``stop_reason`` where something ended the run early.

        Raises:
            HooktrainError: when this trainer has run before; and whatever stops the run.
        """
        if self._ran or self._closed:
            raise HooktrainError(
                f"trainer: it has run already, to step {self.state.global_step}, and runs once; make another one, with"
                " resume_from=<a checkpoint> to continue"
            )
        self._ran = True
        with self._explained():
            self.prepare()
            if self.resume_from is not None:
                self.resume(self.resume_from)
            self._first_step = self.state.global_step
            state = self.run_loop()
        if not self._held:
            self.close()
        return state

    def train(self) -> TrainerState:
        """The same as :meth:`run`."""
        return self.run()

    def close(self) -> None:
        """End the run: every plugin is torn down, and ranks part. Does nothing when that has been done."""
        if self._closed:
            return
        self._closed = True
        self.requests.forget()
        with self.watchdog.closing(failed=self._failure is not None) as problems:
            problems.extend(self.host.call_each("on_teardown", trainer=self))
            for plugin, problem in problems:
                self.host.warn(f"plugin '{plugin}', hook on_teardown: {described(problem)}")
            for line in self.host.error_policy.summary():
                self.host.warn(line)
            if self.effects is not None:
                self.effects.release()
            if self._opened:
                self.strategy.close()
            if self._built:
                self.trained.eval()
            self.run_record.end(self.state.stop_reason or "", self.exit_status, self._failure)

    def __enter__(self) -> Self:
        self._held = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held = False
        if exception is not None:
            self._fail(exception)
        self.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """End the run on whatever is raised inside, tell every plugin, and raise it again with where it happened."""
        try:
            yield
        except BaseException as exception:
            self._fail(exception)
            self.close()
            raise

    def _fail(self, exception: BaseException) -> None:
        if self._closed or self._failure is exception:
            return
        self._failure = exception
        self.watchdog.enter("end")
        self.run_record.at_failure()
        explain(self.host, exception, self.state.global_step, self.world.rank)
        failure_of(exception).saved = self.saving.last
        for plugin, problem in self.host.call_each("on_exception", trainer=self, exception=exception):
            self.host.warn(f"plugin '{plugin}', hook on_exception: {described(problem)}")

    # --------------------------------------------------------------------------------------------------- saving

    def save(self, path: Path | str, type: str | None = None) -> Path:
        """Save now, whatever the recipe says about checkpoints. Collective.

        Args:
            path: folder to save to.
            type: a checkpoint engine by name; the one that exports for others when omitted, and ``full`` for a
                checkpoint to resume from, which is a folder of its own in ``path``.

        Returns:
            The folder that was written.

        Raises:
            CheckpointError: there is no such engine, or it cannot save.
        """
        config_of, folder = export_config(self.host, type), save_folder(path)
        self.prepare()
        config = config_of(output_dir=folder, save_end_of_training=True)
        shared = {"run_dir": self.run_dir, "world": self.world, "recipe": self.recipe}
        engine = make_part(self.host, "make_checkpoint_engine", config, **shared)
        (saved,) = self.save_with([engine], "end")
        return saved

    # ------------------------------------------------------------------------------------------------- requests

    def request_stop(self, reason: str, *, urgent: bool = False, exit_status: int = 0) -> None:
        """End the run after the current step, on all ranks; may be called from any hook on any rank.

        Args:
            reason: what the run's ``stop_reason`` is then.
            urgent: save with every checkpoint engine before, and begin nothing that takes long, such as an evaluation.
            exit_status: the status with which ``hooktrain train`` ends then.
        """
        self.requests.ask(Agreed(stop=True, save=urgent, urgent=urgent, reason=reason, status=exit_status))

    def request_save(self) -> None:
        """Save with every checkpoint engine after the current step."""
        self.requests.ask(Agreed(save=True))

    def request_evaluation(self) -> None:
        """Evaluate after the current step."""
        self.requests.ask(Agreed(evaluate=True))

    def request_log(self) -> None:
        """Write a log line after the current step."""
        self.requests.ask(Agreed(log=True))

    def request_epoch_end(self) -> None:
        """Skip the rest of the epoch after the current step; the last epoch's end is the end of the run."""
        self.requests.ask(Agreed(end_epoch=True))

    def request_disable(self, plugin: str) -> None:
        """Disable the event hooks and metrics of a plugin after the current step, on all ranks.

        Raises:
            PluginError: there is no such plugin, or the run would train another way without it.
        """
        require_disableable(self.host, plugin)
        self.requests.ask(Agreed(disable=(plugin,)))

    @property
    def is_interrupted(self) -> bool:
        """Whether somebody outside waits for the end of the run; asked by whatever takes long. Collective."""
        return self.requests.is_urgent(self.strategy)

    # ----------------------------------------------------------------------------------------------- properties

    @property
    def global_step(self) -> int:
        """Optimizer steps finished."""
        return self.state.global_step

    @property
    def epochs(self) -> range:
        """Numbers of the epochs that are still to run, the current one included."""
        return range(self.state.epoch, math.ceil(self.training_horizon / len(self.loader)))

    @property
    def train_batches(self) -> Iterator[list[Batch]]:
        """The windows that are left in the current epoch: lists of this rank's micro-batches, on the host."""
        self.random_state.start()
        for rows, batches in self.loader.windows(self.state.epoch, self.state.sequences):
            self._step_sequences = rows
            yield [self.divide(batch) for batch in batches]

    def eval_batches(self, name: str) -> Iterator[Batch]:
        """This rank's micro-batches of an evaluation set, on the host."""
        size = self.recipe.eval_micro_batch_size or self.recipe.micro_batch_size
        return map(self.divide, evaluation_batches(self.data.evaluation[name], self.data, size, self.data_world))

    @property
    def device(self) -> torch.device:
        """The device that the model computes on."""
        return self.strategy.device

    @cached_property
    def training_horizon(self) -> int:
        """Optimizer steps of the whole run, as the schedule sees it."""
        return self.recipe.total_steps(len(self.loader))

    @property
    def warmup_steps(self) -> int:
        """Optimizer steps in which the schedule warms up; 0 when it does not say."""
        return int(member(self.scheduler, SchedulerDefaults, "warmup_steps"))

    @property
    def should_stop(self) -> bool:
        """Whether no further step is to be run: the horizon is reached, or a stop was requested."""
        step, recipe = self.state.global_step, self.recipe
        limits = (
            (step, recipe.exit_iteration),
            (step - self._first_step, recipe.exit_iteration_this_run),
            (self.state.tokens, recipe.max_tokens),
        )
        exits = any(0 < limit <= done for done, limit in limits)
        return exits or step >= self.training_horizon or self.state.stop_reason is not None

    @property
    def is_last_microbatch(self) -> bool:
        """Whether the window ends with the micro-batch that is being computed."""
        return not self._counts

    @property
    def wants_grad_norm(self) -> bool:
        """Whether the current step will be logged or saved."""
        following = self.state.global_step + 1
        for interval in self._reading_intervals:
            if following % interval == 0:
                return True
        return following >= self.training_horizon

    @cached_property
    def _reading_intervals(self) -> tuple[int, ...]:
        """Steps between two log lines, and between two saves of each engine that saves by steps."""
        saves = (engine.config.save_every_n_steps for engine in self.checkpoint_engines)
        return (self.recipe.log_interval, *filter(None, saves))

    def say(self, message: str) -> None:
        """Tell the user something, through the hook ``on_message``; other ranks than 0 say nothing."""
        if self.world.is_main:
            self.hooks.on_message(trainer=self, message=mask_text(message))

    # -------------------------------------------------------------------------------------------------- the run

    def run_loop(self) -> TrainerState:
        """Run the training and emit its events; the parts must have been built."""
        self.trained.train()
        self.finite_weights.note(self)
        if self.resume_from is None:
            self.random_state.keep_observers_out(self.host)
        self.watchdog.start()
        self.run_record.at_train_start(self.global_step, self.training_horizon)
        self.hooks.on_train_start(trainer=self)
        self.random_state.go_on()
        self.saving.make_up(self)
        if self.should_stop:
            self.say(f"nothing is left to train: step {self.global_step} of {self.training_horizon} has been finished")
        else:
            self.hooks.run_train(trainer=self)
            require_finished(self, self._agree)
            if not self.checkpoint("end"):
                self.finite_weights.require(self)
        with self.watchdog.during("save"):
            self.saving.collect(self, wait=True)
        require_trained(self)
        self.hooks.on_train_end(trainer=self)
        if self.effects is not None:
            self.effects.require_named()
        self.saving.require_last(self)
        self.watchdog.enter("")
        return self.state

    def epoch(self, epoch: int) -> int:
        """Run one epoch, or what is left of it, and emit its events; returns its steps."""
        self.leaves_epoch = False
        if self.state.sequences == 0:  # in the middle of one, what follows was drawn before the checkpoint
            self.random_state.start()
        self.hooks.on_epoch_start(trainer=self, epoch=epoch)
        steps: int = self.hooks.run_epoch(trainer=self, epoch=epoch)
        self.random_state.started()
        self.hooks.on_epoch_end(trainer=self, epoch=epoch)
        asked = self._agree()
        evaluates = asked.evaluate or (self.recipe.eval_interval == "epoch" and evaluation_due(self, self.global_step))
        if evaluates and self.data.evaluation and self.state.evaluated_at != self.global_step and not asked.urgent:
            self.state.log_due = True
            self.log(self.evaluate())
            asked |= self._agree()
        elif asked.log:
            self.log({})
        require_complete_epoch(self, epoch)
        if self.state.sequences >= len(self.data.train):
            self.state.begin_epoch(epoch + 1)
            self.checkpoint("epoch")
        if asked.save:
            self.checkpoint("request")
        self.random_state.end_step(self.global_step)
        return steps

    def step(self, batches: Sequence[Batch]) -> StepOutput:
        """Run one optimizer step and emit its events; then evaluate, log and save, in this order, where due."""
        hooks, state = self.hooks, self.state
        self.begin_step(batches)
        if self.effects is not None:
            self.effects.begin_step()
        hooks.on_step_start(trainer=self, batches=batches)
        output: StepOutput = hooks.run_step(trainer=self, batches=batches)
        if type(output) is not StepOutput:
            expected = "StepOutput(total=<loss summed over the window's tokens>, grad_norm, stepped)"
            raise wrong_answer(self.host, "run_step", output, expected)
        state.global_step, state.epoch_step = state.global_step + 1, state.epoch_step + 1
        self.run_record.at_step(state.global_step)
        state.count(self._step_sequences, self._step_tokens, self._step_targets, {self._unit: self.denominator})
        count_skipped(self, output.stepped, self._step_sequences)
        self.meter.add(output, self.denominator, self._step_tokens, self._sums)
        step, metrics, stop = state.global_step, {}, self.should_stop
        due = evaluation_due(self, step)
        state.log_due = stop or step % self.recipe.log_interval == 0  # for whoever saves meanwhile
        state.evaluation_due = (due or stop) and bool(self.data.evaluation)
        hooks.on_step_end(trainer=self, output=output)
        require_updates(self)

        asked = self._agree()
        due = due or asked.evaluate
        if asked.urgent:
            state.evaluation_due = due and bool(self.data.evaluation)
        elif self.data.evaluation and (due or self.should_stop):
            state.log_due = True
            metrics = self.evaluate()
            asked |= self._agree()  # what evaluation found may be a reason to save or to stop
        stop = self.should_stop
        if metrics or stop or asked.log or step % self.recipe.log_interval == 0:
            self.log(metrics)
        if self.checkpoint_engines:
            self.checkpoint("request" if asked.save else "step")
        self.random_state.end_step(step)
        return output

    def begin_step(self, batches: Sequence[Batch]) -> None:
        """Count the micro-batches of a step; a ``run_step`` that changes them calls this with the new ones."""
        self._counts, self._sums, self.skip_reason = {}, [], ""
        denominator, tokens, targets = 0.0, 0.0, 0.0
        for batch in batches:
            self._counts[id(batch)] = found = self.count(batch)
            denominator += found.denominator
            tokens += found.tokens
            targets += found.num_target_tokens
        if not self._alone:
            denominator, tokens, targets = self.strategy.sum_numbers([denominator, tokens, targets])
        self.denominator, self._step_tokens, self._step_targets = denominator, int(tokens), int(targets)

    def count(self, batch: Batch) -> BatchCounts:
        """Count a micro-batch on the host, in the unit that every other one of the run is counted in."""
        counts = self.hooks.count_batch(trainer=self, batch=batch)
        if type(counts) is not BatchCounts:
            expected = "BatchCounts(denominator, tokens, num_target_tokens)"
            raise wrong_answer(self.host, "count_batch", counts, expected)
        unit = counts.counts.removeprefix("weighted ")  # what has no weight counts as 1
        self._unit = self._unit or unit
        if unit != self._unit:
            expected = f"'{self._unit}', the unit of the micro-batches before"
            raise wrong_answer(self.host, "count_batch", f"denominators that count '{counts.counts}'", expected)
        return counts

    def microbatch(self, batch: Batch) -> LossSum:
        """Run a micro-batch and emit its events: compute its loss, add up its gradients; returns the loss, detached."""
        hooks = self.hooks
        counts = self._counts.pop(id(batch), None)
        if counts is None:
            raise LoopHookError(
                "trainer.microbatch: given a micro-batch that is not of the current window, or for the second time, so"
                " the loss would be divided by a wrong count; call trainer.begin_step(batches) with the ones you use"
            )
        batch = self.on_device(batch)
        hooks.on_microbatch_start(trainer=self, batch=batch)
        loss = self.loss_of(batch, counts)
        hooks.run_backward(trainer=self, loss=loss.total / (self.denominator or 1))
        sums = {name: value.detach() for name, value in loss.sums.items()} if loss.sums else loss.sums
        self._sums.append(sums)
        detached = LossSum(loss.total.detach(), loss.denominator, sums, loss.counts)
        hooks.on_microbatch_end(trainer=self, batch=batch, loss=detached)
        return detached

    def on_device(self, batch: Batch) -> Batch:
        """A micro-batch for the model: on the device, without what only ``count_batch`` reads."""
        return self.strategy.to_device({name: value for name, value in batch.items() if name not in HOST_KEYS})

    def loss_of(self, batch: Batch, counts: BatchCounts) -> LossSum:
        """Compute the loss of a micro-batch on the device, in the strategy's precision, and check its denominator."""
        denominator = counts.denominator
        if "token_weights" in batch or "shift_token_weights" in batch:
            batch = {**batch, "num_target_tokens": counts.num_target_tokens}
        loss = self.strategy.compute(
            lambda: self.hooks.compute_loss(trainer=self, model=self.model, batch=batch, denominator=denominator),
            not self._counts,
        )
        if type(loss) is not LossSum or (loss.denominator, loss.counts) != (denominator, counts.counts):
            raise wrong_loss(self.host, loss, counts)
        if self._sum_names is None:
            self._sum_names = frozenset(loss.sums)
        elif loss.sums.keys() != self._sum_names:
            raise other_sums(self.host, loss.sums, self._sum_names)
        return loss if denominator else uncounted(loss)

    def optimizer_step(self) -> OptimizerStep:
        """Run the optimizer step and emit its events, then step the scheduler."""
        hooks = self.hooks
        hooks.on_optimizer_step_start(trainer=self)
        if self.denominator and not self.skip_reason:
            update: OptimizerStep = hooks.run_optimizer_step(trainer=self)
            if type(update) is not OptimizerStep:
                raise wrong_answer(self.host, "run_optimizer_step", update, "OptimizerStep(grad_norm, stepped)")
        else:  # without gradients an optimizer with momentum or weight decay would move weights nevertheless
            self.strategy.zero_grad()
            update = OptimizerStep(None, stepped=False)
        self.last_lr = self.optimizer.param_groups[0]["lr"]
        self.scheduler.step()
        hooks.on_optimizer_step_end(trainer=self, grad_norm=update.grad_norm)
        return update

    def evaluate(self) -> dict[str, float]:
        """Evaluate and emit the events of it, before, during or after the run; returns its metrics."""
        self.prepare()
        training = self.model.training
        with self.meter.pause(), self.watchdog.during("evaluation"):
            self.trained.eval()
            try:
                self.hooks.on_evaluate_start(trainer=self)
                with torch.no_grad():
                    metrics = dict(self.hooks.run_evaluate(trainer=self))
            finally:
                self.trained.train(training)
            self.state.evaluated(metrics)
            self.hooks.on_evaluate_end(trainer=self, metrics=metrics)
        return metrics

    def log(self, more: Mapping[str, float]) -> None:
        """Read all metrics, waiting for the device once, and emit ``on_log``."""
        state, metrics = self.state, read_metrics(self, more)
        state.metrics.update(metrics)
        self.hooks.on_log(trainer=self, metrics=metrics)
        self.history.append(metrics)
        self.meter.reset()
        state.log_due, state.evaluation_due = False, state.evaluation_due and not more

    def checkpoint(self, reason: str) -> bool:
        """Save with the engines that are due for ``reason``: step, epoch, end or request; returns whether any is."""
        return self.saving.save_due(self, reason)

    def save_with(self, engines: list[CheckpointEngine], reason: str) -> Sequence[Path]:
        """Save with these engines and emit the events of it; returns what each wrote."""
        self.due_checkpoint_engines, self.checkpoint_reason = engines, reason
        return self.saving.save(self, engines, reason)

    def resume(self, path: Path) -> None:
        """Load a checkpoint and emit the events of it."""
        self.hooks.on_resume_start(trainer=self, path=path)
        self.hooks.load_checkpoint(trainer=self, path=path)
        self.saving.resumed(self)
        self.random_state.resumed(self.global_step)
        self.hooks.on_resume_end(trainer=self, path=path)
        self.random_state.go_on()

    # ----------------------------------------------------------------------------------------- plugins' own state

    def collect_states(self, check: Callable[[Any, str], object] | None = None) -> dict[str, Any]:
        """Every plugin's state by its name, that of plugins which are absent from this run included.

        ``check`` raises for a state, given with its path, that cannot be saved, which is an error of the plugin.
        """
        return {**self._absent_plugins, **self.host.collect_states(self, check)}

    def restore_states(self, states: Mapping[str, Any], by_rank: Mapping[str, Sequence[Any]] | None = None) -> None:
        """Hand each plugin its state, or its own rank's; what belongs to nobody is kept for the next save."""
        self._absent_plugins = self.host.restore_states(self, states, by_rank or {})

    def _agree(self) -> Agreed:
        asked = self.requests.agree(self.strategy)
        if asked.stop:
            self.state.stop_reason, self.exit_status = asked.reason, asked.status
        if asked.end_epoch:
            self.leaves_epoch, self.state.sequences = True, len(self.data.train)
            if self.state.epoch + 1 >= self.epochs.stop:
                self.state.stop_reason = self.state.stop_reason or "the last epoch was cut short"
        if asked.collect:
            self.saving.collect(self)
        if asked.disable:
            self.host.error_policy.leave_out(asked.disable)
        return asked
