"""Every hook of the engine.

A hook's decorator says its kind, and whether an implementation may make the host wait for the device. The verb of its
name says the kind as well. Factories (``make_*``, ``load_source``) build a part: the first result that is not None is
the part. Events (``on_*``) call every implementation and ignore the results. Loop hooks (``run_*``, ``compute_loss``,
...) are what the loop does between two events: the first plugin that returns a result other than ``NotImplemented``
does it, and ``@hookimpl(wrapper=True)`` wraps it; None is an error, so that a forgotten ``return`` does not do the
work twice. What is collected (``register_*``, ``check_*``, ``collect_*``, ``count_loss_terms``, ``make_models``) comes
from all plugins. A question is answered by the first result that is not None.

An implementation may name any subset of a hook's parameters. The guide ``hooks`` is generated from this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import pluggy

from hooktrain.markers import hookspec

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from torch.optim import Optimizer

    from hooktrain.bench import Suite
    from hooktrain.errors import Complaint
    from hooktrain.protocols import CheckpointEngine, GenerationMetric, LogitsMetric, Scheduler, Strategy
    from hooktrain.recipe.aliases import RecipeAlias
    from hooktrain.recipe.dialects import Dialect
    from hooktrain.recipe.generation import GenerationSettings
    from hooktrain.recipe.model import Recipe
    from hooktrain.training.trainer import Trainer
    from hooktrain.types import (
        Batch,
        BatchCounts,
        Data,
        DataEstimate,
        Dataset,
        ExamplePreview,
        ExtraModel,
        Generation,
        LossSum,
        LossTerm,
        MemoryEstimate,
        ModelEstimate,
        ModelOutputs,
        OptimizerStep,
        PerSecond,
        StepOutput,
        TrainerState,
        TrainerType,
        World,
    )
__all__ = ["COLLECTED", "EVENTS", "FACTORIES", "HOOKS", "KINDS", "LOOP_HOOKS", "QUESTIONS", "Hook"]

KINDS: Mapping[str, str] = {
    "factory": "the first result that is not None is the part",
    "event": "every implementation is called, results are ignored",
    "loop hook": "one implementation does the work, others may wrap it",
    "collected": "every implementation is called, all results count",
    "question": "the first result that is not None counts",
}
"""The kinds of hooks, and what becomes of the results."""


class Hook(NamedTuple):
    """What the decorator of a hook says.

    Attributes:
        kind: one of :data:`KINDS`.
        device: whether it ``must not touch`` a device, ``must not wait`` for it, or ``may wait`` for it.
        makes: the kind of part that a factory builds.
    """

    kind: str
    device: str
    makes: str = ""


UNTOUCHED, ASYNC, SYNC = "must not touch", "must not wait", "may wait"

_Function = TypeVar("_Function", bound=Callable[..., Any])
_DECLARED: dict[str, Hook] = {}


def _declare(hook: Hook) -> Callable[[_Function], _Function]:
    def declare(function: _Function) -> _Function:
        _DECLARED[function.__name__] = hook
        return hookspec(firstresult=hook.kind in ("factory", "loop hook", "question"))(function)

    return declare


def _factory(makes: str, device: str) -> Callable[[_Function], _Function]:
    return _declare(Hook("factory", device, makes))


def _event(device: str) -> Callable[[_Function], _Function]:
    return _declare(Hook("event", device))


def _loop_hook(device: str) -> Callable[[_Function], _Function]:
    return _declare(Hook("loop hook", device))


def _collected(device: str) -> Callable[[_Function], _Function]:
    return _declare(Hook("collected", device))


def _question(device: str) -> Callable[[_Function], _Function]:
    return _declare(Hook("question", device))


# --------------------------------------------------------------------------------------------------------- registration


@_collected(UNTOUCHED)
def register_hookspecs(pluginmanager: pluggy.PluginManager) -> None:
    """Add hooks of the plugin's own.

    Called: once for each plugin, when it is registered, before any other hook of it.
    Ranks: every rank, independently.
    Device: must not touch a device.

    Args:
        pluginmanager: ``pluginmanager.add_hookspecs(module_or_class)`` adds functions that are marked with
            ``@hookspec``.

    Returns:
        Ignored.

    Default: none.
    """


@_collected(UNTOUCHED)
def register_configs() -> Mapping[str, Mapping[str, type]]:  # type: ignore[empty-body]
    """Register named parts: the config classes that a recipe selects by ``type``.

    Called: once for each plugin, when it is registered, after ``register_hookspecs``.
    Ranks: every rank, independently.
    Device: must not touch a device.

    Returns:
        ``{kind: {name: attrs class}}``. The kinds are those of the factories (``tokenizer``, ``data``, ``source``,
        ``model``, ``optimizer``, ``scheduler``, ``loss``, ``strategy``, ``checkpoint``, ``metric``) and ``settings``,
        whose names are top-level keys of the recipe with a plugin's own settings. If the class has a class variable
        ``shorthand``, text, a list, true or false in the recipe is the value of the field of that name. None registers
        nothing. Two plugins that register one name are an error.

    Default: none; the engine registers the settings ``console`` and ``jsonl``.
    """


@_collected(UNTOUCHED)
def register_trainer_types() -> Mapping[str, TrainerType]:  # type: ignore[empty-body]
    """Register values for the recipe's ``type``.

    Called: once for each plugin, when it is registered, after ``register_configs``.
    Ranks: every rank, independently.
    Device: must not touch a device.

    Returns:
        ``{name: TrainerType}``. A trainer type lists the compatible names of each kind of part, the default first. None
        registers nothing.

    Default: none; ``hooktrain-sft`` registers ``sft`` and ``causal``.
    """


@_collected(UNTOUCHED)
def register_benchmarks() -> Iterable[Suite]:  # type: ignore[empty-body]
    """Register suites for ``hooktrain bench``.

    Called: by ``hooktrain bench``, once; never in a run.
    Ranks: one process; the command does not start ranks.
    Device: must not touch a device; a suite prepares what it needs when it runs.

    Returns:
        Suites, see ``hooktrain.bench``. None registers nothing. Two plugins that register one name are an error.

    Default: none; the project's own suites run with ``python -m benchmarks``.
    """


@_collected(UNTOUCHED)
def register_recipe_aliases() -> Iterable[RecipeAlias]:  # type: ignore[empty-body]
    """Register aliases: keys of other programs that mean the same as keys of this plugin's parts.

    Called: before a recipe is structured, each time.
    Ranks: every rank, independently.
    Device: must not touch a device, and must not import torch.

    Returns:
        Aliases, see ``hooktrain.RecipeAlias``. A recipe may have an alias in place of its target; both together are an
        error. None registers nothing.

    Default: none; ``hooktrain-deepspeed`` registers ``deepspeed``, ``hooktrain-torch`` ``scheduler.name``.
    """


@_collected(UNTOUCHED)
def register_recipe_dialects() -> Iterable[Dialect]:  # type: ignore[empty-body]
    """Register dialects: recipes of other programs that hooktrain can read.

    Called: by ``hooktrain convert``, by ``--from NAME``, and for a recipe that is none of hooktrain's; never in a run.
    Ranks: every rank, independently.
    Device: must not touch a device, and must not import torch.

    Returns:
        Objects with the attributes and methods of ``hooktrain.Dialect``. None registers nothing. Two plugins that
        register one name are an error.

    Default: none; ``hooktrain-recipes`` registers ``arctic``, ``axolotl``, ``llamafactory`` and ``trl``.
    """


@_collected(UNTOUCHED)
def unused_hooks(recipe: Recipe) -> Iterable[str] | None:
    """Name the hooks that this plugin implements and does not need in this run.

    Called: for each plugin alone, when the recipe has been structured, before ``check_recipe``. The hooks are removed,
        as if the plugin did not implement them, so that they cost nothing at each step.
    Ranks: every rank, independently; all must name the same.
    Device: must not touch a device, the network or a process group.

    Args:
        recipe: the structured recipe; a plugin's own settings are in ``recipe.settings["<name>"]``.

    Returns:
        Names of hooks. None keeps all of them.

    Default: none.
    """


@_collected(UNTOUCHED)
def check_recipe(recipe: Recipe, world: World) -> Iterable[Complaint] | None:
    """Report errors of a recipe that is well-formed and cannot work.

    Called: once, when the recipe has been structured, after ``unused_hooks`` and before ``make_strategy``. The errors
        of all plugins are shown together.
    Ranks: every rank, independently.
    Device: must not touch a device, a file, the network or a process group.

    Args:
        recipe: the structured recipe.
        world: rank and world size of this process.

    Returns:
        Complaints, or None.

    Default: none.
    """


@_collected(UNTOUCHED)
def check_files(recipe: Recipe, world: World) -> Iterable[Complaint] | None:
    """Report what a recipe names and is not on this machine.

    Called: by ``hooktrain plan``, after ``check_recipe``. A run reports the same when it reads the files.
    Ranks: one process; the command does not start ranks.
    Device: must not touch a device or the network; may look at files, and must not read them whole.

    Args:
        recipe: the structured recipe.
        world: one of the planned processes: its rank, and the number of ranks.

    Returns:
        Complaints, or None.

    Default: none; ``hooktrain-hf`` checks paths of models, tokenizers and sources.
    """


# -------------------------------------------------------------------- factories, in the order in which a run calls them


@_factory("strategy", SYNC)
def make_strategy(config: Any, world: World, recipe: Recipe) -> Strategy | None:
    """Build the strategy: devices, precision, and communication with other ranks.

    Called: by ``trainer.prepare``, before all other factories.
    Ranks: every rank; it may start the process group.
    Device: may wait for the device.

    Args:
        config: the ``strategy`` section of the recipe, as an instance of its config class.
        world: rank and world size of this process.
        recipe: the structured recipe, for strategies whose own configuration repeats sizes and limits.

    Returns:
        An object with the methods of ``hooktrain.Strategy``. None leaves it to the next plugin.

    Default: none; ``hooktrain-torch`` builds ``torch``, and ``hooktrain-deepspeed`` builds ``deepspeed``.
    """


@_factory("tokenizer", UNTOUCHED)
def make_tokenizer(config: Any, world: World, recipe: Recipe) -> Any:
    """Build the tokenizer.

    Called: by ``trainer.prepare``, after ``make_strategy`` and before ``make_data``; and inside ``estimate_data``, to
        find the data in the cache.
    Ranks: every rank.
    Device: must not touch a device.

    Args:
        config: the ``tokenizer`` section of the recipe, as an instance of its config class.
        world: rank and world size of this process.
        recipe: the structured recipe.

    Returns:
        The tokenizer. None leaves it to the next plugin.

    Default: none; ``hooktrain-hf`` builds ``huggingface``.
    """


@_factory("data", UNTOUCHED)
def make_data(config: Any, tokenizer: Any, world: World, hooks: Any, recipe: Recipe) -> Data | None:
    """Prepare the data to train and evaluate on.

    Called: by ``trainer.prepare``, after ``make_tokenizer`` and before ``make_loader``.
    Ranks: every rank; all must return the same data.
    Device: must not touch a device.

    Args:
        config: the ``data`` section of the recipe, as an instance of its config class.
        tokenizer: what ``make_tokenizer`` returned.
        world: rank and world size of this process.
        hooks: calls hooks, as in ``hooks.load_source(config=source, world=world)``.
        recipe: the structured recipe.

    Returns:
        The data. None leaves it to the next plugin.

    Default: none; ``hooktrain-sft`` prepares ``sft`` and ``causal``.
    """


@_question(UNTOUCHED)
def fingerprint_source(config: Any, world: World, quick: bool) -> str | None:
    """Identify the content of a source without loading it, so that prepared data is found again.

    Called: inside ``make_data`` or ``estimate_data``, for each source. ``load_source`` is called for it only if the
        cache does not hold its data. For a stream, only a resume compares the text.
    Ranks: every rank.
    Device: must not touch a device.

    Args:
        config: one entry of the sources.
        world: rank and world size of this process.
        quick: whether to return None instead of reading large files, as for ``hooktrain plan``.

    Returns:
        Text that is equal for two calls only if ``load_source`` returns the same examples in the same order; for a
        stream, as far as that is known without reading it completely. None leaves it to the next plugin. A source
        without a fingerprint is prepared in every run.

    Default: none; ``hooktrain-hf`` identifies ``huggingface``.
    """


@_factory("source", UNTOUCHED)
def load_source(config: Any, world: World) -> Dataset | None:
    """Load the raw examples of one source.

    Called: inside ``make_data``, for each entry of ``data.sources`` and ``data.eval_sources`` whose data is not in the
        cache; and by ``hooktrain plan``, in ``estimate_data``, for those that are files on this machine.
    Ranks: every rank.
    Device: must not touch a device.

    Args:
        config: one entry of the sources.
        world: rank and world size of this process.

    Returns:
        A map-style data set of dictionaries, or for a stream an iterable of them. None leaves it to the next plugin.

    Default: none; ``hooktrain-hf`` loads ``huggingface``.
    """


@_loop_hook(UNTOUCHED)
def make_loader(dataset: Dataset, data: Data, recipe: Recipe, world: World) -> Any:
    """Build the loader that returns the micro-batches of each accumulation window.

    Called: by ``trainer.prepare``, once, after ``make_data`` and before ``make_loss``.
    Ranks: every rank; all must return equally many micro-batches at each step.
    Device: must not touch a device.

    Args:
        dataset: the training set, ``data.train``.
        data: all of what ``make_data`` returned.
        recipe: the structured recipe.
        world: rank and world size among those that get sequences of their own.

    Returns:
        An object with ``__len__()``, the optimizer steps of an epoch, and ``windows(epoch, start)``, an iterator over
        ``(sequences, micro-batches)`` of this rank that begins after ``start`` sequences of all ranks. NotImplemented
        leaves it to the next plugin, None is an error.

    Default: ``data.loader`` if the data has one, or ``hooktrain.WindowLoader``.
    """


@_factory("loss", UNTOUCHED)
def make_loss(config: Any, world: World, recipe: Recipe) -> Callable[[Module, Batch, float], LossSum] | None:
    """Build the loss.

    Called: by ``trainer.prepare``, after ``make_loader`` and before ``make_checkpoint_engine``.
    Ranks: every rank.
    Device: must not touch a device.

    Args:
        config: the ``loss`` section of the recipe, as an instance of its config class.
        world: rank and world size of this process.
        recipe: the structured recipe.

    Returns:
        ``loss(model, batch, denominator) -> LossSum``, with the batch on the device and the ``denominator`` that
        ``count_batch`` counted on the host. None leaves it to the next plugin.

    Default: none; ``hooktrain-sft`` builds ``sft`` and ``dft``.
    """


@_factory("metric", UNTOUCHED)
def make_metric(config: Any, recipe: Recipe, tokenizer: Any, world: World) -> LogitsMetric | GenerationMetric | None:
    """Build one metric of evaluations.

    Called: by ``trainer.prepare``, once for each entry of the recipe's ``eval_metrics``, after ``make_loss`` and before
        ``make_checkpoint_engine``.
    Ranks: every rank.
    Device: must not touch a device.

    Args:
        config: one entry of ``eval_metrics``, as an instance of its config class.
        recipe: the structured recipe.
        tokenizer: what ``make_tokenizer`` returned.
        world: rank and world size of this process.

    Returns:
        An object with the methods of ``hooktrain.LogitsMetric``, of ``hooktrain.GenerationMetric``, or of both. Its
        values are logged as ``eval/<set>/<name>``. None leaves it to the next plugin.

    Default: none; ``hooktrain-evals`` builds ``exact_match``, ``token_f1``, ``rouge_l`` and others.
    """


@_factory("checkpoint", UNTOUCHED)
def make_checkpoint_engine(config: Any, run_dir: Path, world: World, recipe: Recipe) -> CheckpointEngine | None:
    """Build one checkpoint engine.

    Called: by ``trainer.prepare``, once for each entry of the recipe's ``checkpoint``, after ``make_loss`` and before
        ``make_model``; and by ``trainer.save``.
    Ranks: every rank.
    Device: must not touch a device.

    Args:
        config: one entry of ``checkpoint``, as an instance of its config class.
        run_dir: the folder of the run's files.
        world: rank and world size of this process.
        recipe: the structured recipe.

    Returns:
        An object with the methods of ``hooktrain.CheckpointEngine``. None leaves it to the next plugin.

    Default: none; ``hooktrain-torch`` builds ``full``, and ``hooktrain-hf`` builds ``huggingface``.
    """


@_factory("model", SYNC)
def make_model(config: Any, tokenizer: Any, world: World, recipe: Recipe) -> Module | None:
    """Build the model.

    Called: by ``trainer.prepare``, under the strategy's ``model_context``, after ``make_checkpoint_engine`` and before
        ``make_optimizer``. Wrap this hook to change the model, as LoRA does.
    Ranks: every rank.
    Device: may wait for the device.

    Args:
        config: the ``model`` section of the recipe, as an instance of its config class.
        tokenizer: what ``make_tokenizer`` returned.
        world: rank and world size of this process.
        recipe: the structured recipe, in whose ``settings`` a plugin that wraps this hook finds its own.

    Returns:
        A torch module. None leaves it to the next plugin.

    Default: none; ``hooktrain-hf`` builds ``huggingface``, and the engine returns a model passed from Python.
    """


@_question(SYNC)
def adopt_model(model: Module, config: Any, tokenizer: Any, world: World) -> Module | None:
    """Prepare a model that was passed to ``hooktrain.Trainer``.

    Called: inside ``make_model``, for ``type: python``. Wrappers of ``make_model`` receive the result.
    Ranks: every rank.
    Device: may wait for the device.

    Args:
        model: the module, with its weights in ``config.weights_dtype``.
        config: the ``model`` section of the recipe: ``name_or_path``, ``attn_implementation``,
            ``activation_checkpointing`` and others.
        tokenizer: what ``make_tokenizer`` returned.
        world: rank and world size of this process.

    Returns:
        The module, ready to be trained. None leaves it to the next plugin. If every plugin returns None, the module is
        trained as it is.

    Default: none; ``hooktrain-hf`` adopts transformers' models.
    """


@_collected(SYNC)
def make_models(
    model: Module, recipe: Recipe, tokenizer: Any, world: World, hooks: Any
) -> Mapping[str, ExtraModel] | None:
    """Describe further models that the run needs: a reference, a teacher, a reward, a critic.

    Called: by ``trainer.prepare``, after ``make_model``, before the strategy prepares any model and before
        ``make_optimizer``; and by ``hooktrain plan``, after ``make_meta_model``, to estimate their memory.
    Ranks: every rank; all must return the same.
    Device: may wait for the device.

    Args:
        model: what ``make_model`` returned, to be copied or measured; in a plan what ``make_meta_model`` returned.
        recipe: the structured recipe.
        tokenizer: what ``make_tokenizer`` returned; None in a plan.
        world: rank and world size of this process.
        hooks: calls hooks, as in ``hooks.make_model(config=recipe.model, tokenizer=tokenizer, world=world,
            recipe=recipe)``, which builds the run's model once more.

    Returns:
        ``{name: ExtraModel(build)}``, or None. ``trainer.models[name]`` is the model. Each name may be there once, and
        not be ``model``. The modules are built when all plugins have returned theirs, and share no weights.

    Default: none.
    """


@_factory("optimizer", SYNC)
def make_optimizer(config: Any, model: Module, world: World, recipe: Recipe) -> Optimizer | None:
    """Build the optimizer.

    Called: by ``trainer.prepare``, after ``make_models``, when the strategy has prepared the model, and before
        ``make_scheduler``; and by ``hooktrain plan``, with the meta model, to estimate its memory.
    Ranks: every rank.
    Device: may wait for the device.

    Args:
        config: the ``optimizer`` section of the recipe, as an instance of its config class.
        model: the model, on its device and in its final form; where ``make_models`` returned trainable models, a module
            that holds it as ``model`` and these under their names.
        world: rank and world size of this process.
        recipe: the structured recipe.

    Returns:
        A torch optimizer. None leaves it to the next plugin.

    Default: none; ``hooktrain-torch`` builds ``adamw``, ``adam``, ``sgd`` and ``torch``.
    """


@_factory("scheduler", UNTOUCHED)
def make_scheduler(
    config: Any, optimizer: Optimizer, total_steps: int, world: World, recipe: Recipe
) -> Scheduler | None:
    """Build the learning-rate schedule.

    Called: by ``trainer.prepare``, after ``make_optimizer``. The engine steps the schedule once after each optimizer
        step.
    Ranks: every rank.
    Device: must not touch a device.

    Args:
        config: the ``scheduler`` section of the recipe, as an instance of its config class.
        optimizer: the optimizer whose ``param_groups`` it sets.
        total_steps: the training horizon in optimizer steps.
        world: rank and world size of this process.
        recipe: the structured recipe.

    Returns:
        An object with ``step()``, ``state_dict()``, ``load_state_dict(state)`` and ``get_last_lr()``, such as a torch
        scheduler. None leaves it to the next plugin.

    Default: none; ``hooktrain-torch`` builds ``constant``, ``linear``, ``cosine`` and ``wsd``.
    """


# --------------------------------------------------------------------------------------------------------------- events


@_event(SYNC)
def on_train_start(trainer: Trainer) -> None:
    """Called when the run begins.

    Called: by ``trainer.run``, once, when all parts are built and a checkpoint, if any, has been loaded; before
        ``run_train``. The random states are put back after each plugin, except after one that declares
        ``changes_gradients`` in a run that does not resume.
    Ranks: every rank.
    Device: may wait for the device.

    Args:
        trainer: the trainer, complete.

    Returns:
        Ignored.

    Default: none.
    """


@_event(SYNC)
def on_train_end(trainer: Trainer) -> None:
    """Called when the run has ended without an error, at its horizon or on request.

    Called: by ``trainer.run``, once, after ``run_train`` and the last ``save_checkpoint``, before ``on_teardown``.
    Ranks: every rank.
    Device: may wait for the device.

    Args:
        trainer: the trainer; ``trainer.state.stop_reason`` is why it ended early.

    Returns:
        Ignored.

    Default: none.
    """


@_event(SYNC)
def on_epoch_start(trainer: Trainer, epoch: int) -> None:
    """Called when an epoch begins, or continues after a resume.

    Called: by ``trainer.epoch``, before ``run_epoch``.
    Ranks: every rank.
    Device: may wait for the device.

    Args:
        trainer: the trainer.
        epoch: its number, from 0.

    Returns:
        Ignored.

    Default: none.
    """


@_event(SYNC)
def on_epoch_end(trainer: Trainer, epoch: int) -> None:
    """Called when an epoch is over, or was cut short by a limit or a stop request.

    Called: by ``trainer.epoch``, after ``run_epoch``.
    Ranks: every rank.
    Device: may wait for the device.

    Args:
        trainer: the trainer.
        epoch: its number, from 0.

    Returns:
        Ignored.

    Default: none.
    """


@_event(ASYNC)
def on_step_start(trainer: Trainer, batches: Sequence[Batch]) -> None:
    """Called when a step (one optimizer step over its accumulation window) begins.

    Called: by ``trainer.step``, after ``count_batch`` and before ``run_step``.
    Ranks: every rank.
    Device: must not wait for the device.

    Args:
        trainer: the trainer; ``trainer.global_step`` counts the steps finished before this one.
        batches: this rank's micro-batches of the accumulation window, on the host.

    Returns:
        Ignored.

    Default: none.
    """


@_event(ASYNC)
def on_step_end(trainer: Trainer, output: StepOutput) -> None:
    """Called when a step is over.

    Called: by ``trainer.step``, after ``run_step`` and before evaluation, logging and checkpoints.
    Ranks: every rank.
    Device: must not wait for the device; keep tensors and read them in ``on_log``.

    Args:
        trainer: the trainer; ``trainer.global_step`` includes this step.
        output: loss and gradient norm as tensors of shape () on the device.

    Returns:
        Ignored.

    Default: none.
    """


@_event(ASYNC)
def on_microbatch_start(trainer: Trainer, batch: Batch) -> None:
    """Called when a micro-batch is about to go through the model.

    Called: by ``trainer.microbatch``, before ``compute_loss``.
    Ranks: every rank.
    Device: must not wait for the device.

    Args:
        trainer: the trainer.
        batch: the micro-batch, on the device: ``input_ids``, ``labels``, ``position_ids`` of shape (sequences, tokens).

    Returns:
        Ignored.

    Default: none.
    """


@_event(ASYNC)
def on_microbatch_end(trainer: Trainer, batch: Batch, loss: LossSum) -> None:
    """Called when the gradients of a micro-batch have been accumulated.

    Called: by ``trainer.microbatch``, after ``run_backward``.
    Ranks: every rank.
    Device: must not wait for the device.

    Args:
        trainer: the trainer.
        batch: the micro-batch, on the device.
        loss: its loss as a sum, detached, shape (), with its denominator.

    Returns:
        Ignored.

    Default: none.
    """


@_event(ASYNC)
def on_optimizer_step_start(trainer: Trainer) -> None:
    """Called when all gradients of the accumulation window are there, before the weights change.

    Called: by ``trainer.optimizer_step``, before ``run_optimizer_step``.
    Ranks: every rank.
    Device: must not wait for the device.

    Args:
        trainer: the trainer; ``trainer.model`` holds the gradients.

    Returns:
        Ignored.

    Default: none.
    """


@_event(ASYNC)
def on_optimizer_update_start(trainer: Trainer, grad_norm: Tensor | float | None) -> None:
    """Called when the gradients are clipped, right before the optimizer changes the weights.

    Called: inside ``run_optimizer_step``, by the strategy, after ``on_optimizer_step_start``; not if the update is
        skipped. A strategy that cannot call it refuses the run.
    Ranks: every rank.
    Device: must not wait for the device.

    Args:
        trainer: the trainer; ``trainer.model`` holds the gradients that the optimizer gets, except under ZeRO 1 to 3,
            which keep them elsewhere.
        grad_norm: norm of all gradients before clipping, shape (), or None if it was not computed.

    Returns:
        Ignored.

    Default: none.
    """


@_event(ASYNC)
def on_zero_grad_start(trainer: Trainer) -> None:
    """Called when the gradients are about to be cleared, after the weights have changed or the update was skipped.

    Called: inside ``run_optimizer_step``, by the strategy, after ``on_optimizer_step_start`` and before
        ``on_optimizer_step_end``. A strategy that cannot call it refuses the run.
    Ranks: every rank.
    Device: must not wait for the device.

    Args:
        trainer: the trainer; ``trainer.model`` holds the gradients, except under ZeRO 1 to 3.

    Returns:
        Ignored.

    Default: none.
    """


@_event(ASYNC)
def on_optimizer_step_end(trainer: Trainer, grad_norm: Tensor | float | None) -> None:
    """Called when the weights have changed and the gradients are cleared.

    Called: by ``trainer.optimizer_step``, after ``run_optimizer_step``.
    Ranks: every rank.
    Device: must not wait for the device.

    Args:
        trainer: the trainer.
        grad_norm: norm of all gradients before clipping, shape (), or None if it was not computed.

    Returns:
        Ignored.

    Default: none.
    """


@_event(SYNC)
def on_evaluate_start(trainer: Trainer) -> None:
    """Called when evaluation begins.

    Called: by ``trainer.evaluate``, before ``run_evaluate``.
    Ranks: every rank.
    Device: may wait for the device.

    Args:
        trainer: the trainer; the model is in evaluation mode.

    Returns:
        Ignored.

    Default: none.
    """


@_event(SYNC)
def on_evaluate_end(trainer: Trainer, metrics: Mapping[str, float]) -> None:
    """Called when evaluation is over.

    Called: by ``trainer.evaluate``, after ``run_evaluate`` and before a checkpoint of the same step.
    Ranks: every rank.
    Device: may wait for the device.

    Args:
        trainer: the trainer; the model is back in training mode.
        metrics: what ``run_evaluate`` returned, such as ``eval/<name>/loss``, equal on all ranks; empty when the
            evaluation was abandoned.

    Returns:
        Ignored.

    Default: none.
    """


@_event(SYNC)
def on_checkpoint_start(trainer: Trainer) -> None:
    """Called when at least one checkpoint engine is about to save.

    Called: by the trainer, before ``save_checkpoint``. Afterwards the weights are checked, which must be finite, and
        the random states are captured: a checkpoint holds them as they are then.
    Ranks: every rank.
    Device: may wait for the device.

    Args:
        trainer: the trainer.

    Returns:
        Ignored.

    Default: none.
    """


@_event(SYNC)
def on_checkpoint_end(trainer: Trainer, path: Path) -> None:
    """Called when a checkpoint engine has saved.

    Called: by the trainer, once for each path that ``save_checkpoint`` returned, after it; and once for each
        asynchronous save, some steps after the one that it holds. At least once for each: a run that was killed between
        a save and the end of this event calls it again for the same path when it resumes, after ``on_train_start``, so
        an upload must be one that can be repeated. The random states are put back afterwards, so random numbers drawn
        here do not change the training.
    Ranks: every rank.
    Device: may wait for the device.

    Args:
        trainer: the trainer.
        path: what was written, an absolute path.

    Returns:
        Ignored.

    Default: none.
    """


@_event(SYNC)
def on_resume_start(trainer: Trainer, path: Path) -> None:
    """Called when a checkpoint is about to be loaded.

    Called: by ``trainer.run``, before ``load_checkpoint``.
    Ranks: every rank.
    Device: may wait for the device.

    Args:
        trainer: the trainer, as the recipe built it.
        path: the checkpoint.

    Returns:
        Ignored.

    Default: none.
    """


@_event(SYNC)
def on_resume_end(trainer: Trainer, path: Path) -> None:
    """Called when a checkpoint has been loaded.

    Called: by ``trainer.run``, after ``load_checkpoint`` and before ``on_train_start``. The random states of the
        checkpoint are put back afterwards.
    Ranks: every rank.
    Device: may wait for the device.

    Args:
        trainer: the trainer, as the checkpoint left it.
        path: the checkpoint.

    Returns:
        Ignored.

    Default: none.
    """


@_event(SYNC)
def on_log(trainer: Trainer, metrics: Mapping[str, float]) -> None:
    """Called when a line of metrics is ready.

    Called: by ``trainer.log``, after ``collect_metrics``. Twice for one step where an evaluation is asked for, or made
        up for, after the line of that step; ``metrics.jsonl`` then has both in one line.
    Ranks: every rank, with equal values for the engine's metrics.
    Device: may wait for the device: the engine has just read all metrics from it.

    Args:
        trainer: the trainer.
        metrics: numbers by name.

    Returns:
        Ignored.

    Default: the console and ``metrics.jsonl``.
    """


@_event(ASYNC)
def on_message(trainer: Trainer, message: str) -> None:
    """Called with a message for the user.

    Called: by ``trainer.say``, which plugins call instead of printing into a progress bar.
    Ranks: rank 0 only.
    Device: must not wait for the device.

    Args:
        trainer: the trainer.
        message: plain text, possibly of several lines.

    Returns:
        Ignored.

    Default: the console.
    """


@_event(ASYNC)
def on_exception(trainer: Trainer, exception: BaseException) -> None:
    """Called when the run has failed.

    Called: by the trainer, before ``on_teardown`` and before the exception is raised again.
    Ranks: the ranks on which it failed.
    Device: must not wait for the device; it may be what failed.

    Args:
        trainer: the trainer.
        exception: what was raised.

    Returns:
        Ignored.

    Default: none.
    """


@_event(ASYNC)
def on_teardown(trainer: Trainer) -> None:
    """Called at the end of every run, however it ended.

    Called: by ``trainer.close``, once, after all other hooks; the teardown of every plugin runs even if another one's
        raises.
    Ranks: every rank.
    Device: must not wait for the device.

    Args:
        trainer: the trainer.

    Returns:
        Ignored.

    Default: none.
    """


# ----------------------------------------------------------------------------------------------------------- loop hooks


@_loop_hook(ASYNC)
def run_train(trainer: Trainer) -> TrainerState:  # type: ignore[empty-body]
    """Run the whole training: which epochs, in which order.

    Called: by ``trainer.run``, after ``on_train_start`` and before ``on_train_end``; not if nothing is left to train.
    Ranks: every rank.
    Device: must not wait for the device.

    Args:
        trainer: the trainer; call ``trainer.epoch(number)``.

    Returns:
        ``trainer.state``. NotImplemented leaves it to the next plugin, None is an error.

    Default: ``trainer.epoch`` for each of ``trainer.epochs`` until a limit or a stop request.
    """


@_loop_hook(ASYNC)
def run_epoch(trainer: Trainer, epoch: int) -> int:  # type: ignore[empty-body]
    """Run one epoch: which accumulation windows, in which order.

    Called: by ``trainer.epoch``, after ``on_epoch_start`` and before ``on_epoch_end``.
    Ranks: every rank.
    Device: must not wait for the device.

    Args:
        trainer: the trainer; iterate over ``trainer.train_batches`` and call ``trainer.step(batches)``.
        epoch: its number, from 0.

    Returns:
        The number of steps that were run. NotImplemented leaves it to the next plugin, None is an error.

    Default: ``trainer.step`` for each accumulation window until a limit or a stop request.
    """


@_loop_hook(ASYNC)
def run_step(trainer: Trainer, batches: Sequence[Batch]) -> StepOutput:  # type: ignore[empty-body]
    """Run one optimizer step over its accumulation window.

    Called: by ``trainer.step``, after ``on_step_start`` and before ``on_step_end``.
    Ranks: every rank; all get equally many micro-batches, padding batches with no trained token where the data ran out.
    Device: must not wait for the device.

    Args:
        trainer: the trainer; call ``trainer.microbatch(batch)`` and ``trainer.optimizer_step()``.
        batches: this rank's micro-batches of the accumulation window, on the host.

    Returns:
        The step's output. NotImplemented leaves it to the next plugin, None is an error.

    Default: ``trainer.microbatch`` for each micro-batch, then ``trainer.optimizer_step``.
    """


@_loop_hook(UNTOUCHED)
def count_batch(trainer: Trainer, batch: Batch) -> BatchCounts:  # type: ignore[empty-body]
    """Count what a micro-batch holds, before it moves to the device.

    Called: by ``trainer.count``, for each micro-batch: those of a step in ``trainer.begin_step``, those of an
        evaluation inside ``run_evaluate``. The sum of the denominators over the accumulation window and the ranks is
        ``trainer.denominator``, which the loss is divided by.
    Ranks: every rank.
    Device: must not touch a device.

    Args:
        trainer: the trainer.
        batch: the micro-batch, on the host.

    Returns:
        A ``BatchCounts`` with denominator, tokens and trained tokens. Every micro-batch of a run must be counted in the
        same unit; ``weighted tokens``, a sum of weights, go with ``tokens``. NotImplemented leaves it to the next
        plugin, None is an error.

    Default: the batch's own ``denominator`` and ``counts``, or trained tokens: labels other than -100 except the first
        of each sequence, or the sum of their ``token_weights`` where the batch has these; and the batch's own
        ``tokens``, or the entries of ``attention_mask``, or all of ``input_ids``.
    """


@_loop_hook(ASYNC)
def compute_loss(trainer: Trainer, model: Module, batch: Batch, denominator: float) -> LossSum:  # type: ignore[empty-body]
    """Compute the loss of a micro-batch, as a sum.

    Called: by ``trainer.loss_of``, inside ``run_step`` or ``run_evaluate``: under autocast, and in evaluation under
        ``torch.no_grad``.
    Ranks: every rank.
    Device: must not wait for the device.

    Args:
        trainer: the trainer.
        model: the model to call.
        batch: the micro-batch, on the device. It may have ``token_weights``, factors on the losses of ``labels`` of the
            same shape and not shifted either, as ``shift_token_weights`` where ranks share tokens; then it has
            ``num_target_tokens`` too, the number of trained tokens.
        denominator: what it contributes to ``trainer.denominator``, as ``count_batch`` counted it.

    Returns:
        The undivided *sum* of the loss, and its denominator: the engine divides once, by ``trainer.denominator``. The
        loss of a micro-batch that contributes 0 is multiplied by 0.
        Further sums are divided in the same way and logged under their names, and as ``eval/<name>/...`` in evaluation.
        Terms are added to the total and logged in the same way, with those of ``collect_loss_terms``.
        With ``token_weights`` it has to multiply each token's loss, and say ``counts="weighted tokens"``.
        NotImplemented leaves it to the next plugin, None is an error.

    Default: the recipe's ``loss``.
    """


@_collected(UNTOUCHED)
def count_loss_terms(trainer: Trainer, batch: Batch) -> Mapping[str, float] | None:
    """Count what the terms that a plugin adds to the loss are divided by.

    Called: by ``trainer.count``, after ``count_batch``, for each micro-batch: those of a step in
        ``trainer.begin_step``, those of an evaluation inside ``run_evaluate``. The sum over the accumulation window and
        the ranks is what the engine divides the term of that name by.
    Ranks: every rank.
    Device: must not touch a device.

    Args:
        trainer: the trainer.
        batch: the micro-batch, on the host.

    Returns:
        ``{name: what the micro-batch contributes}``: 0 where it holds nothing for the term, which is then multiplied by
        0, and a finite positive number otherwise. The same names for every micro-batch, on every rank. A term that is
        not counted is divided by the loss's own denominator. None counts nothing. A wrong result is an error of the
        plugin, whose ``on_error`` says what follows.

    Default: none.
    """


@_collected(ASYNC)
def collect_loss_terms(trainer: Trainer, outputs: ModelOutputs, batch: Batch) -> Mapping[str, LossTerm] | None:
    """Add terms to the loss of a micro-batch, each with its own denominator and coefficient.

    Called: by ``trainer.loss_of``, inside ``run_step`` or ``run_evaluate``, after ``compute_loss``: under autocast, and
        in evaluation under ``torch.no_grad``.
    Ranks: every rank.
    Device: must not wait for the device.

    Args:
        trainer: the trainer.
        outputs: ``outputs["loss"]`` is the result of ``compute_loss``, and ``outputs["denominator"]`` what the
            micro-batch contributes to ``trainer.denominator``. What the plugin asks for as ``PluginInfo.needs_outputs``
            is there under its name: ``last_hidden_state``, shape (sequences, tokens, hidden), ``hidden_states`` and
            ``router_logits``, a tensor for each layer.
        batch: the micro-batch, on the device.

    Returns:
        ``{name: LossTerm(total, coefficient)}`` with the undivided sum of each term, or None: the engine divides each
        by what ``count_loss_terms`` counted for it over the accumulation window and all ranks, adds it to the loss with
        its coefficient, and logs it by name without, as ``eval/<name of the set>/<name>`` in evaluation, where it is
        not added. Every name in each micro-batch, on every rank. A name that is taken, a total that is no floating
        scalar on the device, has no graph or is not finite, and a coefficient that is no finite number are errors of
        the plugin, as if it had raised them; its ``on_error`` says what follows.

    Default: none; a loss may return terms of its own, as ``LossSum.terms``.
    """


@_loop_hook(ASYNC)
def run_backward(trainer: Trainer, loss: Tensor) -> Tensor:  # type: ignore[empty-body]
    """Accumulate the gradients of a micro-batch.

    Called: by ``trainer.microbatch``, after ``compute_loss`` and before ``on_microbatch_end``.
    Ranks: every rank.
    Device: must not wait for the device.

    Args:
        trainer: the trainer; ``trainer.is_last_microbatch`` is whether the accumulation window ends with this
            micro-batch.
        loss: the loss, already divided by ``trainer.denominator``, shape ().

    Returns:
        The loss that was propagated. NotImplemented leaves it to the next plugin, None is an error.

    Default: ``trainer.strategy.backward``.
    """


@_loop_hook(ASYNC)
def run_optimizer_step(trainer: Trainer) -> OptimizerStep:  # type: ignore[empty-body]
    """Clip, update the weights, and clear the gradients.

    Called: by ``trainer.optimizer_step``, after ``on_optimizer_step_start`` and before ``on_optimizer_step_end``; not
        if the window has no trained token. The engine steps the scheduler afterwards.
    Ranks: every rank.
    Device: must not wait for the device, unless ``on_nan: skip`` or fp16 scaling needs it.

    Args:
        trainer: the trainer; ``trainer.wants_grad_norm`` is whether this step will be logged.

    Returns:
        The gradient norm, and whether the weights changed. NotImplemented leaves it to the next plugin, None is an
        error.

    Default: ``trainer.strategy.optimizer_step`` with the recipe's ``gradient_clipping``.
    """


@_loop_hook(SYNC)
def run_evaluate(trainer: Trainer) -> Mapping[str, float]:  # type: ignore[empty-body]
    """Measure the model on every evaluation set.

    Called: by ``trainer.evaluate``, after ``on_evaluate_start`` and before ``on_evaluate_end``: every ``eval_interval``
        steps, at the end, and on request; under ``torch.no_grad``, with the model in evaluation mode.
    Ranks: every rank; the result must be equal on all.
    Device: may wait for the device.

    Args:
        trainer: the trainer; ``trainer.eval_batches(name)`` iterates over this rank's micro-batches.

    Returns:
        Metrics, ``eval/<name>/loss`` among them. NotImplemented leaves it to the next plugin, None is an error.

    Default: the mean over all trained tokens, every sequence once.
    """


@_loop_hook(SYNC)
def save_checkpoint(trainer: Trainer) -> Sequence[Path]:  # type: ignore[empty-body]
    """Save with every checkpoint engine that is due.

    Called: by the trainer, after ``on_checkpoint_start`` and before ``on_checkpoint_end``: after a step, an epoch or
        the run, and in ``trainer.save``. Weights that are not finite end the run before anything is saved.
    Ranks: every rank.
    Device: may wait for the device.

    Args:
        trainer: the trainer; ``trainer.due_checkpoint_engines`` are due.

    Returns:
        The paths that were written. NotImplemented leaves it to the next plugin, None is an error.

    Default: ``engine.save(trainer)`` for each of ``trainer.due_checkpoint_engines``.
    """


@_loop_hook(SYNC)
def load_checkpoint(trainer: Trainer, path: Path) -> Path:  # type: ignore[empty-body]
    """Load a checkpoint into the trainer.

    Called: by ``trainer.run``, after ``on_resume_start`` and before ``on_resume_end``, when all parts are built.
    Ranks: every rank.
    Device: may wait for the device.

    Args:
        trainer: the trainer, as the recipe built it.
        path: the checkpoint.

    Returns:
        The path that was loaded. NotImplemented leaves it to the next plugin, None is an error.

    Default: ``engine.load(trainer, path)`` of the checkpoint engine whose ``can_load(path)`` is true.
    """


# ----------------------------------------------------------------------------------------- what metrics are measured on


@_question(ASYNC)
def visit_logits(
    trainer: Trainer,
    model: Module,
    batch: Batch,
    num_target_tokens: int,
    visit: Callable[[Tensor, Tensor], None],
) -> bool | None:
    """Call a function with the logits that predict the trained tokens of a micro-batch, some tokens at a time.

    Called: by ``trainer.evaluate``, after ``run_evaluate``, for each micro-batch where a metric of the recipe counts in
        logits; under ``torch.no_grad``, in the strategy's precision.
    Ranks: every rank, equally often; a padding batch has no trained token, and still runs the model.
    Device: must not wait for the device.

    Args:
        trainer: the trainer.
        model: the model to call.
        batch: the micro-batch, on the device.
        num_target_tokens: the number of its trained tokens.
        visit: takes logits in single precision at least, shape (tokens, vocabulary), and the ids of the tokens that
            they predict, shape (tokens,). Every trained token is given once; the logits are not used afterwards.

    Returns:
        True. None leaves it to the next plugin.

    Default: none; ``hooktrain-sft`` runs the LM head of transformers' models on a chunk of tokens at a time.
    """


@_question(SYNC)
def generate_answers(
    trainer: Trainer,
    model: Module,
    examples: Sequence[tuple[Sequence[int], Sequence[int]]],
    settings: GenerationSettings,
    seed: int,
) -> Sequence[Generation] | None:
    """Have the model answer some prompts.

    Called: by ``trainer.evaluate``, after ``run_evaluate``, where a metric of the recipe compares answers; under
        ``torch.no_grad``, in the strategy's precision.
    Ranks: every rank, with prompts of its own; equally often where the strategy shards weights, and then no rank may
        end before the others.
    Device: may wait for the device.

    Args:
        trainer: the trainer.
        model: the model to call.
        examples: token ids of a prompt, and of the answer of the data.
        settings: length of the answers, and how tokens are drawn.
        seed: for drawing tokens; the random states are to be left as they were.

    Returns:
        One ``Generation`` for each example, in their order. None leaves it to the next plugin.

    Default: none; ``hooktrain-hf`` generates with transformers' models.
    """


# ---------------------------------------------------------------------------------------------------- metrics and state


@_collected(ASYNC)
def collect_metrics(trainer: Trainer) -> Mapping[str, Tensor | float | PerSecond] | None:
    """Add values to a log line.

    Called: by ``trainer.log``, every ``log_interval`` steps, after every evaluation and on request, before ``on_log``.
    Ranks: every rank; rank 0's values are logged.
    Device: must not wait for the device: return tensors of shape (), and the engine reads all of them at once.

    Args:
        trainer: the trainer.

    Returns:
        Values by name, or None; a rate is ``PerSecond(amount since the last line)``. Anything else, and a name that is
        taken, is an error of the plugin, as if it had raised one; its ``on_error`` says what follows.

    Default: the engine's metrics: ``step``, ``epoch``, ``loss``, ``lr``, ``grad_norm``, ``tokens``,
        ``supervised_tokens``, ``tokens_per_second``, ``step_seconds``; and ``pairs``, or whatever else the loss is
        divided by, with their number so far.
    """


@_collected(SYNC)
def collect_state(trainer: Trainer) -> Mapping[str, Any] | None:
    """Return what the plugin must get back after a resume.

    Called: by ``trainer.collect_states``, inside ``save_checkpoint``.
    Ranks: every rank; a state that is equal on all ranks is kept once, and another one for each rank.
    Device: may wait for the device.

    Args:
        trainer: the trainer.

    Returns:
        A mapping of JSON values and tensors, kept under the plugin's name. Numpy's numbers become Python's; any other
        value is an error of the plugin, as if it had raised one, and names the key. None keeps nothing.

    Default: none.
    """


@_collected(SYNC)
def restore_state(trainer: Trainer, state: Mapping[str, Any], states: Sequence[Mapping[str, Any] | None]) -> None:
    """Take back what ``collect_state`` returned.

    Called: by ``trainer.restore_states``, inside ``load_checkpoint``, for each plugin that has state in the checkpoint.
    Ranks: every rank.
    Device: may wait for the device.

    Args:
        trainer: the trainer.
        state: what this plugin's ``collect_state`` returned on this rank when the checkpoint was saved. With another
            number of ranks it is rank 0's, and if states differed by rank, a warning says so unless ``states`` is
            named.
        states: what it returned on each rank, to be divided anew; a single one where all returned the same.

    Returns:
        Ignored.

    Default: none.
    """


# ------------------------------------------------------------------------------------------------------- trained models


@_question(UNTOUCHED)
def describe_model(source: str, recipe: Mapping[str, Any], dtype: str | None) -> Mapping[str, Any] | None:
    """Describe how a saved model is loaded, as sections of a recipe.

    Called: by ``hooktrain export``, ``evaluate`` and ``chat``, for what is neither a run directory nor a checkpoint,
        and for the newest export of a run without checkpoints; never in a run.
    Ranks: every rank; each must return the same.
    Device: must not touch a device.

    Args:
        source: a folder, a file or a name, as the user wrote it.
        recipe: the recipe as written, of the run that the model is from, with the values of ``-o``; possibly empty.
        dtype: the precision to load the weights in, ``fp32``, ``bf16`` or ``fp16``; None is the recipe's, or that in
            which they are stored.

    Returns:
        Sections that take the places of the recipe's, such as ``{"model": {...}, "tokenizer": {...}}``. None leaves it
        to the next plugin. Raise a ``HooktrainError`` to say why it cannot be loaded.

    Default: none; ``hooktrain-hf`` describes folders and names of models, ``hooktrain-peft`` adapters on their base.
    """


@_question(SYNC)
def merge_model(module: Module, dtype: str | None, recipe: Recipe) -> Module | None:
    """Merge what a plugin has added to a model, such as an adapter, into the model's own weights.

    Called: by ``hooktrain export --merge``, when the weights have been loaded; never in a run.
    Ranks: one process; the command does not start ranks.
    Device: may wait for the device.

    Args:
        module: the model; it is not used afterwards.
        dtype: the precision in which the weights will be written, ``fp32``, ``bf16`` or ``fp16``; None is their own.
        recipe: the structured recipe.

    Returns:
        The merged model. None leaves it to the next plugin. Raise a ``HooktrainError`` to say why it cannot be merged.

    Default: none; ``hooktrain-peft`` merges its adapters.
    """


@_question(SYNC)
def stream_answer(
    model: Module, tokenizer: Any, messages: Sequence[Mapping[str, Any]], settings: GenerationSettings, seed: int
) -> Iterator[str] | None:
    """Answer the last message of a conversation, a piece of text after the other.

    Called: by ``hooktrain chat``, for each message of the user; never in a run. The model is in evaluation mode.
    Ranks: one process; the command does not start ranks.
    Device: may wait for the device.

    Args:
        model: the model, as ``make_model`` built it.
        tokenizer: what ``make_tokenizer`` returned.
        messages: mappings with ``role`` and ``content``, from the first on.
        settings: length of the answer, and how tokens are drawn.
        seed: for drawing tokens.

    Returns:
        An iterator over the text of the answer, without special tokens. Whoever stops iterating closes it, and the
        model then stops. None leaves it to the next plugin.

    Default: none; ``hooktrain-hf`` answers with transformers' models, in the chat template of their tokenizer.
    """


# ----------------------------------------------------------------------------------------------- estimates and previews


@_question(UNTOUCHED)
def make_meta_model(config: Any, world: World, recipe: Recipe) -> Module | None:
    """Build the model without its weights, for estimates.

    Called: by ``hooktrain plan``, under ``torch.device("meta")``. A plugin that wraps ``make_model`` wraps this hook
        too, so that the plan counts what will be trained.
    Ranks: one process; the command does not start ranks.
    Device: must not touch a device, the network or a process group, nor read weights.

    Args:
        config: the ``model`` section of the recipe, as an instance of its config class.
        world: one of the planned processes: its rank, and the number of ranks.
        recipe: the structured recipe.

    Returns:
        A module with the names, shapes, dtypes and ``requires_grad`` of the model. None leaves it to the next plugin.
        Raise a ``HooktrainError`` to say why it cannot be known, such as *not downloaded*.

    Default: none; ``hooktrain-hf`` builds ``huggingface``, and ``hooktrain-peft`` adds its adapter.
    """


@_collected(UNTOUCHED)
def estimate_activations(recipe: Recipe, model: Module, sequences: int, tokens: int) -> Mapping[str, int] | None:
    """Estimate the memory that a micro-batch keeps between the forward and the backward pass.

    Called: by ``hooktrain plan``, after ``make_meta_model``, within torch's ``FakeTensorMode``, in which the model can
        be called at no cost.
    Ranks: one process; the command does not start ranks.
    Device: must not touch a device.

    Args:
        recipe: the structured recipe.
        model: what ``make_meta_model`` returned, as fake tensors on the CPU.
        sequences: sequences of the micro-batch.
        tokens: tokens of each sequence.

    Returns:
        Bytes by purpose, such as ``{"activations": 10**9}``; the figures of all plugins are added. None adds nothing.

    Default: none; ``hooktrain-hf`` estimates ``huggingface``, and ``hooktrain-sft`` adds the logits of its losses.
    """


@_question(UNTOUCHED)
def count_positions(config: Any) -> int | None:
    """Count the tokens for which a model has positions, before it is built.

    Called: inside ``make_data`` and ``estimate_data``, for the model of the recipe.
    Ranks: every rank; each must return the same.
    Device: must not touch a device, nor read weights.

    Args:
        config: the ``model`` section of the recipe, as an instance of its config class; or a model passed from Python.

    Returns:
        The number for a model that cannot compute a longer sequence. None leaves it to the next plugin. Where no
        plugin answers, nothing limits the sequences.

    Default: none; ``hooktrain-hf`` reads the config of ``huggingface`` and of transformers' models.
    """


@_question(UNTOUCHED)
def estimate_examples(config: Any) -> int | None:
    """Count the examples of one source, quickly.

    Called: by ``hooktrain plan``, inside ``estimate_data``, for each source.
    Ranks: one process; the command does not start ranks.
    Device: must not touch a device or the network.

    Args:
        config: one entry of the sources.

    Returns:
        The number. None leaves it to the next plugin. Raise a ``HooktrainError`` to say why it cannot be known.

    Default: none; ``hooktrain-hf`` counts the files of ``huggingface``.
    """


@_question(UNTOUCHED)
def estimate_data(config: Any, recipe: Recipe, world: World, hooks: Any) -> DataEstimate | None:
    """Estimate what an epoch trains on, without preparing it.

    Called: by ``hooktrain plan``.
    Ranks: one process; the command does not start ranks.
    Device: must not touch a device or the network.

    Args:
        config: the ``data`` section of the recipe, as an instance of its config class.
        recipe: the structured recipe.
        world: one of the planned processes: its rank, and the number of ranks.
        hooks: calls hooks, as in ``hooks.estimate_examples(config=source)``.

    Returns:
        The figures that are known. None leaves it to the next plugin. Raise a ``HooktrainError`` to say why nothing can
        be known.

    Default: none; ``hooktrain-sft`` reads its cache, or calls ``estimate_examples``.
    """


@_question(UNTOUCHED)
def estimate_memory(config: Any, recipe: Recipe, world: World, model: ModelEstimate) -> MemoryEstimate | None:
    """Estimate what the strategy keeps on each device.

    Called: by ``hooktrain plan``, after ``estimate_data`` and ``estimate_activations``.
    Ranks: one process; the command does not start ranks.
    Device: must not touch a device or a process group; it may check whether there is a GPU.

    Args:
        config: the ``strategy`` section of the recipe, as an instance of its config class.
        recipe: the structured recipe.
        world: one of the planned processes: its rank, and the number of ranks.
        model: sizes of weights, optimizer and activations.

    Returns:
        Bytes by purpose. None leaves it to the next plugin.

    Default: none; ``hooktrain-torch`` estimates ``torch``, and ``hooktrain-deepspeed`` estimates ``deepspeed``.
    """


@_question(UNTOUCHED)
def preview_examples(
    config: Any, tokenizer: Any, world: World, hooks: Any, count: int
) -> Sequence[ExamplePreview] | None:
    """Show how the first examples of each source are trained on.

    Called: by ``hooktrain data RECIPE --show N``.
    Ranks: one process; the command does not start ranks.
    Device: must not touch a device.

    Args:
        config: the ``data`` section of the recipe, as an instance of its config class.
        tokenizer: what ``make_tokenizer`` returned.
        world: rank and world size of this process.
        hooks: calls hooks, as in ``hooks.load_source(config=source, world=world)``.
        count: examples to show of each source.

    Returns:
        The examples in pieces, each with whether it is trained and why. None leaves it to the next plugin.

    Default: none; ``hooktrain-sft`` shows ``sft`` and ``causal``.
    """


@_question(SYNC)
def store_outputs(name: str, recipe: Recipe, tokenizer: Any, world: World, hooks: Any) -> Mapping[str, Any] | None:
    """Compute what a further model says about the data, and keep it for the runs that read it.

    Called: by ``hooktrain data RECIPE --teacher``, before ``make_data``; an implementation prepares the data itself.
    Ranks: one process; the command does not start ranks.
    Device: may wait for the device.

    Args:
        name: of the model under the recipe's ``models``: ``teacher``.
        recipe: the structured recipe.
        tokenizer: what ``make_tokenizer`` returned.
        world: rank and world size of this process.
        hooks: calls hooks, as in ``hooks.make_data(config=recipe.data, tokenizer=tokenizer, world=world, hooks=hooks,
            recipe=recipe)``.

    Returns:
        Facts to report, as plain values: for each set of the data ``tokens``, ``bytes``, ``seconds`` and ``path``. None
        leaves it to the next plugin.

    Default: none; ``hooktrain-sft`` stores the teacher's likeliest tokens for ``loss: {type: distill, top_k: 64}``.
    """


# ------------------------------------------------------------------------------------- derived from the decorators


def _of(kind: str) -> tuple[str, ...]:
    return tuple(name for name, hook in _DECLARED.items() if hook.kind == kind)


HOOKS: Mapping[str, Hook] = MappingProxyType(_DECLARED)
"""Every hook of the engine, in the order of this file."""
FACTORIES: Mapping[str, str] = {name: HOOKS[name].makes for name in _of("factory")}
"""Each factory, and the kind of part that it builds."""
LOOP_HOOKS = _of("loop hook")
EVENTS = _of("event")
COLLECTED = _of("collected")
QUESTIONS = _of("question")
