"""Every hook of the engine.

The verb says the kind. ``register_*`` and ``check_*`` are collected from all plugins. ``make_*`` and ``load_source``
build a part: the first plugin that returns something other than None builds it. ``on_*`` are events: every
implementation is called, and results are ignored. ``run_*``, ``compute_loss``, ``save_checkpoint`` and
``load_checkpoint`` are loop hooks: what the loop *does* between two events. The first plugin that returns a result
does it, and ``@hookimpl(wrapper=True)`` wraps it. ``NotImplemented`` leaves the work to the next plugin; None is an
error, so that work is never done twice.

An implementation may name any subset of a hook's parameters. The README's hook reference is made from this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from hooktrain.markers import hookspec

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from torch.optim import Optimizer

    from hooktrain.bench import Suite
    from hooktrain.errors import Complaint
    from hooktrain.protocols import CheckpointEngine, Scheduler, Strategy
    from hooktrain.recipe.model import Recipe
    from hooktrain.training.trainer import Trainer
    from hooktrain.types import (
        Batch,
        BatchCounts,
        Data,
        DataEstimate,
        Dataset,
        ExamplePreview,
        LossSum,
        MemoryEstimate,
        ModelEstimate,
        OptimizerStep,
        StepOutput,
        TrainerState,
        TrainerType,
        World,
    )

__all__ = ["EVENTS", "FACTORIES", "LOOP_HOOKS"]

FACTORIES = {
    "make_tokenizer": "tokenizer",
    "make_data": "data",
    "load_source": "source",
    "make_model": "model",
    "make_optimizer": "optimizer",
    "make_scheduler": "scheduler",
    "make_loss": "loss",
    "make_strategy": "strategy",
    "make_checkpoint_engine": "checkpoint",
}
"""Each factory hook and the kind of part that it makes."""

LOOP_HOOKS = (
    "run_train",
    "run_epoch",
    "run_step",
    "compute_loss",
    "run_backward",
    "run_optimizer_step",
    "run_evaluate",
    "save_checkpoint",
    "load_checkpoint",
    "count_batch",
    "make_loader",
)
"""Hooks in which exactly one implementation does the work; the engine's own is the default."""

EVENTS = (
    "on_train_start",
    "on_train_end",
    "on_epoch_start",
    "on_epoch_end",
    "on_step_start",
    "on_step_end",
    "on_microbatch_start",
    "on_microbatch_end",
    "on_optimizer_step_start",
    "on_optimizer_step_end",
    "on_evaluate_start",
    "on_evaluate_end",
    "on_checkpoint_start",
    "on_checkpoint_end",
    "on_resume_start",
    "on_resume_end",
    "on_log",
    "on_message",
    "on_exception",
    "on_teardown",
)
"""Hooks whose results are ignored."""


# ---------------------------------------------------------------------------------------------- registration


@hookspec
def register_hookspecs(pluginmanager: pluggy.PluginManager) -> None:
    """Let a plugin bring hooks of its own.

    Called: once for each plugin, as it is registered, before any other hook of it.
    Ranks: every rank, each for itself.
    Device: must not touch a device.

    Args:
        pluginmanager: ``pluginmanager.add_hookspecs(module_or_class)`` adds functions marked with ``@hookspec``.

    Returns:
        Ignored.

    Default: none.
    """


@hookspec
def register_configs() -> Mapping[str, Mapping[str, type]]:  # type: ignore[empty-body]
    """Register named parts: the config classes that a recipe can select by ``type``.

    Called: once, when the plugins have been loaded, before the recipe is structured.
    Ranks: every rank, each for itself.
    Device: must not touch a device.

    Returns:
        ``{kind: {name: attrs class}}``. Kinds are those of the factories (``tokenizer``, ``data``, ``source``,
        ``model``, ``optimizer``, ``scheduler``, ``loss``, ``strategy``, ``checkpoint``) and ``settings``, whose names
        are top-level keys of the recipe that hold a plugin's own settings; where their class has a class variable
        ``shorthand``, text or a list in the recipe is taken as the value of the field of that name. None offers
        nothing. Two plugins that offer one name are an error.

    Default: none; the engine offers the settings ``console`` and ``jsonl``.
    """


@hookspec
def register_trainer_types() -> Mapping[str, TrainerType]:  # type: ignore[empty-body]
    """Register values for the recipe's ``type``.

    Called: once, when the plugins have been loaded, before the recipe is structured.
    Ranks: every rank, each for itself.
    Device: must not touch a device.

    Returns:
        ``{name: TrainerType}``; a trainer type lists the compatible names of each kind of part, the first being the
        default. None offers nothing.

    Default: none; ``hooktrain-sft`` offers ``sft`` and ``causal``.
    """


@hookspec
def unused_hooks(recipe: Recipe) -> Iterable[str] | None:
    """Name the hooks that this plugin implements and has no use for in this run.

    Called: for each plugin alone, when the recipe has been structured, before ``check_recipe``. What is named is taken
        out, as if the plugin did not implement it, so that it costs nothing at each step.
    Ranks: every rank, each for itself; all must name the same.
    Device: must not touch a device, the network or a process group.

    Args:
        recipe: the structured recipe; a plugin's own settings are in ``recipe.settings["<name>"]``.

    Returns:
        Names of hooks; None keeps all of them.

    Default: none.
    """


@hookspec
def register_benchmarks() -> Iterable[Suite]:  # type: ignore[empty-body]
    """Contribute suites to ``hooktrain bench``.

    Called: by ``hooktrain bench``, once; never in a run.
    Ranks: one process.
    Device: must not touch a device; what a suite needs is made when it runs.

    Returns:
        Suites, see ``hooktrain.bench``. None contributes nothing. Two plugins that contribute one name are an error.

    Default: none; the project's own suites are measured with ``python -m benchmarks``.
    """


@hookspec
def check_recipe(recipe: Recipe, world: World) -> Iterable[Complaint] | None:
    """Complain about a recipe that is well-formed but cannot work.

    Called: once, when the recipe has been structured; all complaints of all plugins are shown at once.
    Ranks: every rank, each for itself.
    Device: must not touch a device, a file, the network or a process group.

    Args:
        recipe: the structured recipe.
        world: this process and how many there are.

    Returns:
        Complaints, or None when there are none.

    Default: none.
    """


# ------------------------------------------------------------------------------------------------- estimates


@hookspec(firstresult=True)
def make_meta_model(config: Any, world: World, recipe: Recipe) -> Module | None:
    """Make the model without its weights, for ``hooktrain plan``.

    Called: by ``hooktrain plan``, under ``torch.device("meta")``. Whoever wraps ``make_model`` wraps this too,
        so that the plan counts what will be trained.
    Ranks: the command runs in one process.
    Device: must not touch a device, the network or a process group, nor read weights.

    Args:
        config: what the recipe says under ``model``.
        world: one of the processes that the plan is for, and how many there are.
        recipe: the structured recipe.

    Returns:
        A module with the names, shapes, types and ``requires_grad`` of the model; None leaves it to the next plugin.
        A ``HooktrainError`` says why it cannot be known, such as *not downloaded*.

    Default: none; ``hooktrain-hf`` answers for ``huggingface``, and ``hooktrain-peft`` adds its adapter.
    """


@hookspec
def estimate_activations(recipe: Recipe, model: Module, sequences: int, tokens: int) -> Mapping[str, int] | None:
    """Say how much memory a micro-batch takes between the forward and the backward pass.

    Called: by ``hooktrain plan``, within torch's ``FakeTensorMode``, in which the model can be called at no cost.
    Ranks: the command runs in one process.
    Device: must not touch a device.

    Args:
        recipe: the structured recipe.
        model: what ``make_meta_model`` made, its tensors said to be on the processor.
        sequences: sequences of the micro-batch.
        tokens: tokens of each sequence.

    Returns:
        Bytes by what they are for, such as ``{"activations": 10**9}``; what all plugins say is added up. None adds
        nothing.

    Default: none; ``hooktrain-hf`` answers for ``huggingface``, ``hooktrain-sft`` adds the logits of its losses.
    """


@hookspec(firstresult=True)
def estimate_examples(config: Any) -> int | None:
    """Count the rows of one source, quickly.

    Called: by implementations of ``estimate_data``, for each source.
    Ranks: the command runs in one process.
    Device: must not touch a device or the network.

    Args:
        config: one entry of the sources.

    Returns:
        The number; None leaves it to the next plugin. A ``HooktrainError`` says why it cannot be known.

    Default: none; ``hooktrain-hf`` counts files of ``huggingface``.
    """


@hookspec(firstresult=True)
def estimate_data(config: Any, recipe: Recipe, world: World, hooks: Any) -> DataEstimate | None:
    """Say what an epoch trains on, without long work.

    Called: by ``hooktrain plan``.
    Ranks: the command runs in one process.
    Device: must not touch a device or the network.

    Args:
        config: what the recipe says under ``data``.
        recipe: the structured recipe.
        world: one of the processes that the plan is for, and how many there are.
        hooks: the hooks themselves, so that the plugin can dispatch.

    Returns:
        The figures that are known; None leaves it to the next plugin. A ``HooktrainError`` says why nothing
        can be known.

    Default: none; ``hooktrain-sft`` looks into its cache, and else asks ``estimate_examples``.
    """


@hookspec(firstresult=True)
def estimate_memory(config: Any, recipe: Recipe, world: World, model: ModelEstimate) -> MemoryEstimate | None:
    """Say what the strategy keeps on each device.

    Called: by ``hooktrain plan``, last of all estimates.
    Ranks: the command runs in one process.
    Device: must not touch a device or a process group; it may ask whether there is a GPU.

    Args:
        config: what the recipe says under ``strategy``.
        recipe: the structured recipe.
        world: one of the processes that the plan is for, and how many there are.
        model: sizes of weights, optimizer and activations.

    Returns:
        Bytes by what they are for; None leaves it to the next plugin.

    Default: none; ``hooktrain-torch`` answers for ``torch``, ``hooktrain-deepspeed`` for ``deepspeed``.
    """


# ------------------------------------------------------------------------------------------------- factories


@hookspec(firstresult=True)
def make_tokenizer(config: Any) -> Any:
    """Build the tokenizer.

    Called: by the trainer, first of all parts.
    Ranks: every rank.
    Device: must not touch a device.

    Args:
        config: what the recipe says under ``tokenizer``, an instance of a registered config class.

    Returns:
        The tokenizer; None leaves it to the next plugin.

    Default: none; ``hooktrain-hf`` builds ``huggingface``.
    """


@hookspec(firstresult=True)
def make_data(config: Any, tokenizer: Any, world: World, hooks: Any) -> Data | None:
    """Prepare the rows to train and evaluate on.

    Called: by the trainer, after the tokenizer and before the model.
    Ranks: every rank; each must end up with the same rows.
    Device: must not touch a device.

    Args:
        config: what the recipe says under ``data``.
        tokenizer: what ``make_tokenizer`` returned.
        world: this process and how many there are.
        hooks: the hooks themselves, so that the plugin can dispatch: ``hooks.load_source(config=..., world=...)``.

    Returns:
        The data; None leaves it to the next plugin.

    Default: none; ``hooktrain-sft`` prepares ``sft`` and ``causal``.
    """


@hookspec(firstresult=True)
def load_source(config: Any, world: World) -> Dataset | None:
    """Load the raw rows of one source.

    Called: by implementations of ``make_data``, once for each entry of ``data.sources`` and ``data.eval_sources``.
    Ranks: every rank.
    Device: must not touch a device.

    Args:
        config: one entry of the sources.
        world: this process and how many there are.

    Returns:
        A map-style data set of dictionaries, or for a stream an iterable of them; None leaves it to the next plugin.

    Default: none; ``hooktrain-hf`` loads ``huggingface``.
    """


@hookspec(firstresult=True)
def fingerprint_source(config: Any, world: World) -> str | None:
    """Say what a source holds, without loading it, so that prepared rows can be found again.

    Called: by implementations of ``make_data``, before ``load_source``, for each source.
    Ranks: every rank.
    Device: must not touch a device.

    Args:
        config: one entry of the sources.
        world: this process and how many there are.

    Returns:
        Text that is equal for two calls only if ``load_source`` gives the same rows in the same order; None declines,
        and the next plugin is asked. Rows of a source that nobody vouches for are prepared anew in every run.

    Default: none; ``hooktrain-hf`` answers for ``huggingface``.
    """


@hookspec(firstresult=True)
def preview_examples(
    config: Any, tokenizer: Any, world: World, hooks: Any, count: int
) -> Sequence[ExamplePreview] | None:
    """Show how the first rows of each source are trained on.

    Called: by ``hooktrain data RECIPE --show N``.
    Ranks: the command runs in one process.
    Device: must not touch a device.

    Args:
        config: what the recipe says under ``data``.
        tokenizer: what ``make_tokenizer`` returned.
        world: this process and how many there are.
        hooks: the hooks themselves, so that the plugin can dispatch.
        count: how many rows of each source.

    Returns:
        The rows in pieces, each with whether it is trained and why; None leaves it to the next plugin.

    Default: none; ``hooktrain-sft`` answers for its data.
    """


@hookspec(firstresult=True)
def make_model(config: Any, tokenizer: Any, world: World, recipe: Recipe) -> Module | None:
    """Build the model.

    Called: by the trainer, under the strategy's ``model_context``, after the data. Wrap it to change the model,
        as LoRA does.
    Ranks: every rank.
    Device: may use it.

    Args:
        config: what the recipe says under ``model``.
        tokenizer: what ``make_tokenizer`` returned.
        world: this process and how many there are.
        recipe: the structured recipe, in whose ``settings`` a plugin that wraps this hook finds its own.

    Returns:
        A torch module; None leaves it to the next plugin.

    Default: none; ``hooktrain-hf`` builds ``huggingface``, and the engine hands out one that it was given.
    """


@hookspec(firstresult=True)
def adopt_model(model: Module, config: Any, tokenizer: Any, world: World) -> Module | None:
    """Get a model ready that was built in Python and given to ``hooktrain.Trainer``.

    Called: by ``make_model`` of the engine, for ``type: python``; what wraps ``make_model`` has it afterwards.
    Ranks: every rank.
    Device: may use it.

    Args:
        model: the module, with its weights in ``config.weights_dtype``.
        config: what the recipe says under ``model``: ``name_or_path``, ``attn_implementation``,
            ``activation_checkpointing`` and others.
        tokenizer: what ``make_tokenizer`` returned.
        world: this process and how many there are.

    Returns:
        The module, ready to be trained; None leaves it to the next plugin. A module that every plugin
        declines is trained as it is.

    Default: none; ``hooktrain-hf`` adopts transformers' models.
    """


@hookspec(firstresult=True)
def make_optimizer(config: Any, model: Module) -> Optimizer | None:
    """Build the optimizer.

    Called: by the trainer, after the strategy has prepared the model.
    Ranks: every rank.
    Device: may use it.

    Args:
        config: what the recipe says under ``optimizer``.
        model: the model, on its device and in its final form.

    Returns:
        A torch optimizer; None leaves it to the next plugin.

    Default: none; ``hooktrain-torch`` builds ``adamw``, ``adam`` and ``sgd``.
    """


@hookspec(firstresult=True)
def make_scheduler(config: Any, optimizer: Optimizer, total_steps: int) -> Scheduler | None:
    """Build the learning-rate schedule.

    Called: by the trainer, after the optimizer. The engine steps it once after each optimizer step.
    Ranks: every rank.
    Device: must not touch a device.

    Args:
        config: what the recipe says under ``scheduler``.
        optimizer: the optimizer whose ``param_groups`` it sets.
        total_steps: the training horizon in optimizer steps.

    Returns:
        An object with ``step()``, ``state_dict()``, ``load_state_dict(state)`` and ``get_last_lr()``, such as a torch
        scheduler; None leaves it to the next plugin.

    Default: none; ``hooktrain-torch`` builds ``constant``, ``linear``, ``cosine`` and ``wsd``.
    """


@hookspec(firstresult=True)
def make_loss(config: Any) -> Callable[[Module, Batch, float], LossSum] | None:
    """Build the loss.

    Called: by the trainer, before the model.
    Ranks: every rank.
    Device: must not touch a device.

    Args:
        config: what the recipe says under ``loss``.

    Returns:
        ``loss(model, batch, denominator) -> LossSum``, with the batch on the device and ``denominator`` what
        ``count_batch`` counted on the host; None leaves the part to the next plugin.

    Default: none; ``hooktrain-sft`` builds ``sft``.
    """


@hookspec(firstresult=True)
def make_strategy(config: Any, world: World, recipe: Recipe) -> Strategy | None:
    """Build what knows about devices, precision and other ranks.

    Called: by the trainer, before every other part.
    Ranks: every rank; it may start the process group.
    Device: may use it.

    Args:
        config: what the recipe says under ``strategy``.
        world: this process and how many there are.
        recipe: the whole recipe, for strategies whose own configuration repeats sizes and limits.

    Returns:
        An object with the methods of ``hooktrain.Strategy``; None leaves it to the next plugin.

    Default: none; ``hooktrain-torch`` builds ``torch``.
    """


@hookspec(firstresult=True)
def make_checkpoint_engine(config: Any, run_dir: Path, world: World) -> CheckpointEngine | None:
    """Build one checkpoint engine.

    Called: by the trainer, once for each entry of the recipe's ``checkpoint``, last of all parts.
    Ranks: every rank.
    Device: must not touch a device.

    Args:
        config: one entry of ``checkpoint``.
        run_dir: where the run keeps its files.
        world: this process and how many there are.

    Returns:
        An object with the methods of ``hooktrain.CheckpointEngine``; None leaves it to the next plugin.

    Default: none; ``hooktrain-torch`` builds ``full``, ``hooktrain-hf`` builds ``huggingface``.
    """


@hookspec(firstresult=True)
def make_loader(dataset: Dataset, data: Data, recipe: Recipe, world: World) -> Any:
    """Build what hands out the windows of micro-batches.

    Called: by the trainer, once, when the data are there.
    Ranks: every rank; all must hand out equally many micro-batches at each step.
    Device: must not touch a device.

    Args:
        dataset: the rows to train on, ``data.train``.
        data: all of what ``make_data`` returned.
        recipe: the structured recipe.
        world: this process and how many there are.

    Returns:
        An object with ``__len__()``, the optimizer steps of an epoch, and ``windows(epoch, start)``, an iterator over
        ``(rows, micro-batches)`` of this rank that begins after ``start`` global rows; NotImplemented leaves it to
        the next plugin.

    Default: ``data.loader`` where the data bring one, else ``hooktrain.training.dataloader.WindowLoader``.
    """


# -------------------------------------------------------------------------------------------------- events


@hookspec
def on_train_start(trainer: Trainer) -> None:
    """The run begins.

    Called: by the trainer, once, when all parts are built and a checkpoint, if any, has been resumed.
    Ranks: every rank.
    Device: may wait for it.

    Args:
        trainer: the trainer, complete.

    Returns:
        Ignored.

    Default: none.
    """


@hookspec
def on_train_end(trainer: Trainer) -> None:
    """The run has ended without an error, at its horizon or because it was asked to.

    Called: by the trainer, once, after the last checkpoint.
    Ranks: every rank.
    Device: may wait for it.

    Args:
        trainer: the trainer; ``trainer.state.stop_reason`` says why it ended early.

    Returns:
        Ignored.

    Default: none.
    """


@hookspec
def on_epoch_start(trainer: Trainer, epoch: int) -> None:
    """An epoch begins, or goes on after a resume.

    Called: by the trainer, before ``run_epoch``.
    Ranks: every rank.
    Device: may wait for it.

    Args:
        trainer: the trainer.
        epoch: its number, from 0.

    Returns:
        Ignored.

    Default: none.
    """


@hookspec
def on_epoch_end(trainer: Trainer, epoch: int) -> None:
    """An epoch is over, or was cut short by a limit or a stop request.

    Called: by the trainer, after ``run_epoch``.
    Ranks: every rank.
    Device: may wait for it.

    Args:
        trainer: the trainer.
        epoch: its number, from 0.

    Returns:
        Ignored.

    Default: none.
    """


@hookspec
def on_step_start(trainer: Trainer, batches: Sequence[Batch]) -> None:
    """A step (one optimizer step, over its whole accumulation window) begins.

    Called: by the trainer, before ``run_step``.
    Ranks: every rank.
    Device: must not wait for it.

    Args:
        trainer: the trainer; ``trainer.global_step`` counts the steps finished before this one.
        batches: this rank's micro-batches of the window, on the host.

    Returns:
        Ignored.

    Default: none.
    """


@hookspec
def on_step_end(trainer: Trainer, output: StepOutput) -> None:
    """A step is over.

    Called: by the trainer, after ``run_step`` and before evaluation, logging and checkpoints.
    Ranks: every rank.
    Device: must not wait for it; keep tensors and read them in ``on_log``.

    Args:
        trainer: the trainer; ``trainer.global_step`` includes this step.
        output: loss and gradient norm as tensors of shape () on the device.

    Returns:
        Ignored.

    Default: none.
    """


@hookspec
def on_microbatch_start(trainer: Trainer, batch: Batch) -> None:
    """A micro-batch is about to go through the model.

    Called: by ``trainer.microbatch``, before ``compute_loss``.
    Ranks: every rank.
    Device: must not wait for it.

    Args:
        trainer: the trainer.
        batch: the micro-batch, on the device: ``input_ids``, ``labels``, ``position_ids`` of shape (rows, tokens).

    Returns:
        Ignored.

    Default: none.
    """


@hookspec
def on_microbatch_end(trainer: Trainer, batch: Batch, loss: LossSum) -> None:
    """The gradients of a micro-batch have been added up.

    Called: by ``trainer.microbatch``, after ``run_backward``.
    Ranks: every rank.
    Device: must not wait for it.

    Args:
        trainer: the trainer.
        batch: the micro-batch, on the device.
        loss: its loss as a sum, detached, shape (), and the tokens it is over.

    Returns:
        Ignored.

    Default: none.
    """


@hookspec
def on_optimizer_step_start(trainer: Trainer) -> None:
    """All gradients of the window are there; the weights are about to change.

    Called: by ``trainer.optimizer_step``, before ``run_optimizer_step``.
    Ranks: every rank.
    Device: must not wait for it.

    Args:
        trainer: the trainer; ``trainer.model`` holds the gradients.

    Returns:
        Ignored.

    Default: none.
    """


@hookspec
def on_optimizer_step_end(trainer: Trainer, grad_norm: Tensor | float | None) -> None:
    """The weights have changed, and gradients are cleared.

    Called: by ``trainer.optimizer_step``, after ``run_optimizer_step``.
    Ranks: every rank.
    Device: must not wait for it.

    Args:
        trainer: the trainer.
        grad_norm: norm of all gradients before clipping, shape (), or None where nobody asked for it.

    Returns:
        Ignored.

    Default: none.
    """


@hookspec
def on_evaluate_start(trainer: Trainer) -> None:
    """Evaluation begins.

    Called: by the trainer, before ``run_evaluate``.
    Ranks: every rank.
    Device: may wait for it.

    Args:
        trainer: the trainer; the model is in evaluation mode.

    Returns:
        Ignored.

    Default: none.
    """


@hookspec
def on_evaluate_end(trainer: Trainer, metrics: Mapping[str, float]) -> None:
    """Evaluation is over.

    Called: by the trainer, after ``run_evaluate`` and before a checkpoint of the same step.
    Ranks: every rank.
    Device: may wait for it.

    Args:
        trainer: the trainer; the model is back in training mode.
        metrics: what ``run_evaluate`` returned, such as ``eval/<name>/loss``, equal on all ranks.

    Returns:
        Ignored.

    Default: none.
    """


@hookspec
def on_checkpoint_start(trainer: Trainer) -> None:
    """At least one checkpoint engine is about to save.

    Called: by the trainer, before ``save_checkpoint``.
    Ranks: every rank.
    Device: may wait for it.

    Args:
        trainer: the trainer.

    Returns:
        Ignored.

    Default: none.
    """


@hookspec
def on_checkpoint_end(trainer: Trainer, path: Path) -> None:
    """A checkpoint engine has saved.

    Called: by the trainer, once for each path that ``save_checkpoint`` returned, and once for each save in the
        background, some steps after the one that it holds.
    Ranks: every rank.
    Device: may wait for it.

    Args:
        trainer: the trainer.
        path: what was written.

    Returns:
        Ignored.

    Default: none.
    """


@hookspec
def on_resume_start(trainer: Trainer, path: Path) -> None:
    """A checkpoint is about to be loaded.

    Called: by the trainer, before ``load_checkpoint``.
    Ranks: every rank.
    Device: may wait for it.

    Args:
        trainer: the trainer, as the recipe built it.
        path: the checkpoint.

    Returns:
        Ignored.

    Default: none.
    """


@hookspec
def on_resume_end(trainer: Trainer, path: Path) -> None:
    """A checkpoint has been loaded.

    Called: by the trainer, after ``load_checkpoint``.
    Ranks: every rank.
    Device: may wait for it.

    Args:
        trainer: the trainer, as the checkpoint left it.
        path: the checkpoint.

    Returns:
        Ignored.

    Default: none.
    """


# ---------------------------------------------------------------------------------------------------- loop hooks


@hookspec(firstresult=True)
def run_train(trainer: Trainer) -> TrainerState:  # type: ignore[empty-body]
    """The whole run: which epochs, in which order.

    Called: by ``trainer.train``, between ``on_train_start`` and ``on_train_end``.
    Ranks: every rank.
    Device: must not wait for it.

    Args:
        trainer: the trainer; call ``trainer.epoch(number)``.

    Returns:
        ``trainer.state``; NotImplemented leaves it to the next plugin, None is an error.

    Default: ``trainer.epoch`` for each of ``trainer.epochs`` until a limit or a stop request.
    """


@hookspec(firstresult=True)
def run_epoch(trainer: Trainer, epoch: int) -> int:  # type: ignore[empty-body]
    """One epoch: which windows, in which order.

    Called: by ``trainer.epoch``, between ``on_epoch_start`` and ``on_epoch_end``.
    Ranks: every rank.
    Device: must not wait for it.

    Args:
        trainer: the trainer; iterate over ``trainer.train_batches`` and call ``trainer.step(batches)``.
        epoch: its number, from 0.

    Returns:
        The steps that were run; NotImplemented leaves it to the next plugin, None is an error.

    Default: ``trainer.step`` for each window until a limit or a stop request.
    """


@hookspec(firstresult=True)
def run_step(trainer: Trainer, batches: Sequence[Batch]) -> StepOutput:  # type: ignore[empty-body]
    """One optimizer step over its whole accumulation window.

    Called: by ``trainer.step``, between ``on_step_start`` and ``on_step_end``.
    Ranks: every rank; all get equally many micro-batches, blank ones with no supervised token where rows ran out.
    Device: must not wait for it.

    Args:
        trainer: the trainer; call ``trainer.microbatch(batch)`` and ``trainer.optimizer_step()``.
        batches: this rank's micro-batches of the window, on the host.

    Returns:
        The step's output; NotImplemented leaves it to the next plugin, None is an error.

    Default: every micro-batch, then the optimizer.
    """


@hookspec(firstresult=True)
def count_batch(trainer: Trainer, batch: Batch) -> BatchCounts:  # type: ignore[empty-body]
    """Count what a micro-batch holds, before it moves to the device.

    Called: by ``trainer.step`` for every micro-batch of the window, and in evaluation. The sum of denominators over
        the window and the ranks is ``trainer.denominator``, which the loss is divided by.
    Ranks: every rank.
    Device: must not touch it.

    Args:
        trainer: the trainer.
        batch: the micro-batch, on the host.

    Returns:
        A ``BatchCounts`` with denominator, tokens and trained tokens; NotImplemented leaves it to the next plugin, None
        is an error. Every micro-batch of a run counts in one unit.

    Default: tokens: labels other than -100, the first of each row excepted; and the batch's own ``tokens``,
        or the entries of ``attention_mask``, or all of ``input_ids``.
    """


@hookspec(firstresult=True)
def compute_loss(trainer: Trainer, model: Module, batch: Batch, denominator: float) -> LossSum:  # type: ignore[empty-body]
    """The loss of a micro-batch, as a sum.

    Called: by ``trainer.microbatch`` under autocast, and by evaluation, under ``torch.no_grad`` as well.
    Ranks: every rank.
    Device: must not wait for it.

    Args:
        trainer: the trainer.
        model: the model to call.
        batch: the micro-batch, on the device.
        denominator: what it contributes to ``trainer.denominator``, as ``count_batch`` counted it.

    Returns:
        The undivided *sum* of the loss and its denominator: the engine divides, once, by ``trainer.denominator``.
        Further sums are divided in the same way and logged under their names, and as ``eval/<name>/...`` in evaluation.
        NotImplemented leaves the loss to the next plugin, None is an error.

    Default: the recipe's ``loss``.
    """


@hookspec(firstresult=True)
def run_backward(trainer: Trainer, loss: Tensor) -> Tensor:  # type: ignore[empty-body]
    """Add the gradients of a micro-batch to those of the window.

    Called: by ``trainer.microbatch``.
    Ranks: every rank.
    Device: must not wait for it.

    Args:
        trainer: the trainer; ``trainer.is_last_microbatch`` says whether the window ends with this micro-batch.
        loss: the loss, already divided by the window's supervised tokens over all ranks, shape ().

    Returns:
        The loss that was propagated; NotImplemented leaves it to the next plugin, None is an error.

    Default: ``trainer.strategy.backward``.
    """


@hookspec(firstresult=True)
def run_optimizer_step(trainer: Trainer) -> OptimizerStep:  # type: ignore[empty-body]
    """Clip, update the weights, clear the gradients.

    Called: by ``trainer.optimizer_step``. The engine steps the scheduler afterwards.
    Ranks: every rank.
    Device: must not wait for it, unless the recipe says ``on_nan: skip`` or fp16 scaling needs it.

    Args:
        trainer: the trainer; ``trainer.wants_grad_norm`` says whether this step will be logged.

    Returns:
        The gradient norm, and whether the weights changed; NotImplemented leaves it to the next plugin, None is an
        error.

    Default: ``trainer.strategy.optimizer_step`` with the recipe's ``gradient_clipping``.
    """


@hookspec(firstresult=True)
def run_evaluate(trainer: Trainer) -> Mapping[str, float]:  # type: ignore[empty-body]
    """Measure the model on every evaluation set.

    Called: by the trainer every ``eval_interval`` steps, at the end, and on request; under ``torch.no_grad`` with the
        model in evaluation mode.
    Ranks: every rank; the result must be equal on all.
    Device: may wait for it.

    Args:
        trainer: the trainer; ``trainer.eval_batches(name)`` iterates over this rank's micro-batches.

    Returns:
        Metrics, ``eval/<name>/loss`` among them; NotImplemented leaves it to the next plugin, None is an error.

    Default: the token-weighted mean over every row exactly once.
    """


@hookspec(firstresult=True)
def save_checkpoint(trainer: Trainer) -> Sequence[Path]:  # type: ignore[empty-body]
    """Save with every checkpoint engine that is due.

    Called: by the trainer after a step, an epoch or the run, when ``trainer.due_checkpoint_engines`` is not empty.
    Ranks: every rank.
    Device: may wait for it.

    Args:
        trainer: the trainer.

    Returns:
        What was written; NotImplemented leaves it to the next plugin, None is an error.

    Default: ``engine.save(trainer)`` for each of ``trainer.due_checkpoint_engines``.
    """


@hookspec(firstresult=True)
def load_checkpoint(trainer: Trainer, path: Path) -> Path:  # type: ignore[empty-body]
    """Load a checkpoint into the trainer.

    Called: by the trainer, when all parts are built, before ``on_train_start``.
    Ranks: every rank.
    Device: may wait for it.

    Args:
        trainer: the trainer, as the recipe built it.
        path: the checkpoint.

    Returns:
        The path that was loaded; NotImplemented leaves it to the next plugin, None is an error.

    Default: the checkpoint engine that claims the path.
    """


# ------------------------------------------------------------------------------------- observing, state, failure


@hookspec
def collect_metrics(trainer: Trainer) -> Mapping[str, Tensor | float] | None:
    """Add values to a log line.

    Called: by the trainer every ``log_interval`` steps, before ``on_log``.
    Ranks: every rank; what is logged is rank 0's.
    Device: must not wait for it: return tensors of shape (), the engine reads all of them at once.

    Args:
        trainer: the trainer.

    Returns:
        Names to values, or None; a name that is taken is an error.

    Default: the engine's own values: ``step``, ``epoch``, ``loss``, ``lr``, ``grad_norm``, ``tokens``,
        ``supervised_tokens``, ``tokens_per_second``, ``step_seconds``.
    """


@hookspec
def on_log(trainer: Trainer, metrics: Mapping[str, float]) -> None:
    """A line of metrics is ready.

    Called: by the trainer every ``log_interval`` steps and after every evaluation.
    Ranks: every rank, with equal values for the engine's own metrics.
    Device: has just been waited for; this is the only point of the loop where the host waits.

    Args:
        trainer: the trainer.
        metrics: names to numbers.

    Returns:
        Ignored.

    Default: the console and ``metrics.jsonl``.
    """


@hookspec
def on_message(trainer: Trainer, message: str) -> None:
    """Somebody has something to tell the user.

    Called: by ``trainer.say(message)``, which any plugin may call instead of printing into a progress bar.
    Ranks: rank 0 only.
    Device: must not wait for it.

    Args:
        trainer: the trainer.
        message: plain text, possibly of several lines.

    Returns:
        Ignored.

    Default: the console.
    """


@hookspec
def collect_state(trainer: Trainer) -> Mapping[str, Any] | None:
    """Give what a plugin must get back after a resume.

    Called: by checkpoint engines, when they save.
    Ranks: every rank; rank 0's is kept.
    Device: may wait for it.

    Args:
        trainer: the trainer.

    Returns:
        A mapping of JSON values and tensors, kept under the plugin's name; None keeps nothing.

    Default: none.
    """


@hookspec
def restore_state(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Take back what ``collect_state`` gave.

    Called: by the trainer during a resume, for each plugin that has state in the checkpoint.
    Ranks: every rank.
    Device: may wait for it.

    Args:
        trainer: the trainer.
        state: what this plugin, and no other, gave when the checkpoint was saved.

    Returns:
        Ignored.

    Default: none.
    """


@hookspec
def on_exception(trainer: Trainer, exception: BaseException) -> None:
    """The run has failed.

    Called: by the trainer, before the exception is raised again.
    Ranks: the ranks on which it failed.
    Device: must not wait for it; it may be what failed.

    Args:
        trainer: the trainer.
        exception: what was raised.

    Returns:
        Ignored.

    Default: none.
    """


@hookspec
def on_teardown(trainer: Trainer) -> None:
    """The run is over, however it ended.

    Called: by the trainer, last of all, once; every plugin's is run even when another one's raises.
    Ranks: every rank.
    Device: must not wait for it.

    Args:
        trainer: the trainer.

    Returns:
        Ignored.

    Default: none.
    """
