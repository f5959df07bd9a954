"""Protocols of the parts that plugins build. Nothing is subclassed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from hooktrain.renamed import RENAMED
from hooktrain.types import (
    Batch,
    ExtraModel,
    Generation,
    ModelExport,
    OptimizerStep,
    StoredTensors,
    TrainedState,
    World,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module
    from torch.optim import Optimizer

    from hooktrain.recipe.model import Recipe
    from hooktrain.training.trainer import Trainer

__all__ = [
    "CheckpointEngine",
    "CheckpointEngineDefaults",
    "ConfigDefaults",
    "DatasetDefaults",
    "GenerationMetric",
    "Loader",
    "LoaderDefaults",
    "LogitsMetric",
    "PlacedLoader",
    "Scheduler",
    "SchedulerDefaults",
    "Strategy",
    "StrategyDefaults",
    "member",
    "missing_members",
    "renamed_member",
]


T = TypeVar("T")


def missing_members(protocol: type, made: object) -> list[str]:
    """Return the members of a protocol that an object does not have."""
    members = {*vars(protocol), *inspect.get_annotations(protocol)}
    return sorted(name for name in members if not name.startswith("_") and not hasattr(made, name))


def renamed_member(protocol: type, name: str, made: object) -> str:
    """Return the old name under which an object has a member of a protocol; empty where it has none."""
    now, before = f"{protocol.__name__}.{name}", f"{protocol.__name__}."
    olds = [old.removeprefix(before) for old, new in RENAMED["method"].items() if new == now]
    return next((old for old in olds if hasattr(made, old)), "")


class Scheduler(Protocol):
    """A learning-rate schedule; every torch scheduler is one."""

    def step(self) -> None:
        """Move on by one optimizer step and set the learning rates."""

    def get_last_lr(self) -> Sequence[float]:
        """The learning rate of each parameter group for the step to come."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class Strategy(Protocol):
    """Devices, precision and other ranks.

    Every method that says *collective* must be called on all ranks.

    Optional members are those of :class:`StrategyDefaults`.
    """

    world: World
    device: torch.device

    def model_context(self) -> AbstractContextManager[Any]:
        """The context under which the model is built (meta device, ``zero.Init``, ...)."""

    def prepare_model(self, model: Module) -> Module:
        """Move and wrap a new model, before the optimizer is built. Collective."""

    def prepare(
        self, model: Module, optimizer: Optimizer, scheduler: Scheduler, accumulation: int
    ) -> tuple[Module, Optimizer, Scheduler]:
        """Bind model, optimizer and scheduler together; returns what the loop is to use. Collective."""

    def compute(self, function: Callable[[], T], last: bool) -> T:
        """Call a function that runs the model, in the strategy's precision and so that gradients can reach all ranks.

        The function may call any part of the model; ``last`` says that the window ends with it. Collective.
        """

    def to_device(self, batch: Batch) -> Batch:
        """The batch on the device, without waiting for it."""

    def backward(self, loss: Tensor, last: bool) -> Tensor:
        """Add gradients of ``loss``, shape (), summed over ranks; ``last`` ends the window. Collective."""

    def optimizer_step(self, max_norm: float, wants_norm: bool, skip_non_finite: bool) -> OptimizerStep:
        """Clip to ``max_norm`` (0: not at all), update and clear gradients. Collective."""

    def zero_grad(self) -> None:
        """Clear gradients without an update."""

    def sum_tensor(self, value: Tensor) -> Tensor:
        """Sum over ranks, on the device, without the host waiting for it. Collective."""

    def sum_numbers(self, values: Sequence[float]) -> list[float]:
        """Sum host numbers over ranks in float64, exactly for integers, without touching the device. Collective."""

    def gather_objects(self, value: Any) -> list[Any]:
        """A plain value (JSON types) of every rank, in rank order. Collective."""

    def barrier(self) -> None:
        """Wait for all ranks. Collective."""

    def unwrap(self, model: Module) -> Module:
        """The bare module."""

    def full_state_dict(self, model: Module) -> dict[str, Tensor]:
        """All weights as whole CPU tensors on rank 0, and ``{}`` elsewhere. Collective.

        Weights that are whole and on the CPU are not copied: whoever keeps them while the training continues copies
        them.
        """

    def trained_state(self, model: Module, optimizer: Optimizer) -> TrainedState:
        """This rank's share of weights and optimizer, not copied: over all ranks each element is there once.

        Collective.
        """

    def load_trained_state(
        self,
        model: Module,
        optimizer: Optimizer,
        stored: tuple[StoredTensors, StoredTensors],
        rest: Mapping[str, Any],
        left_out: Collection[str],
    ) -> None:
        """Take over what any strategy on any number of ranks gave as its ``trained_state``. Collective.

        Args:
            model: what :meth:`prepare` returned.
            optimizer: what :meth:`prepare` returned.
            stored: the tensors of the model and those of the optimizer.
            rest: what :class:`TrainedState` says.
            left_out: names of frozen weights that were not stored, as building the model gives them back.

        Raises:
            ValueError: when names or shapes are not those of this run.
        """

    def state_dict(self) -> dict[str, Any]:
        """The strategy's own state (such as a loss scale): JSON values and tensors."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def close(self) -> None:
        """Give back what the strategy holds, the process group among it."""


class Loader(Protocol):
    """Each epoch's accumulation windows of micro-batches, as ``make_loader`` returns it.

    Optional members are those of :class:`LoaderDefaults`.
    """

    def __len__(self) -> int:
        """Return the accumulation windows of an epoch, which are its optimizer steps."""

    def windows(self, epoch: int, start: int = 0) -> Iterator[tuple[int, list[Batch]]]:
        """Yield the sequences of each window over all ranks, and this rank's micro-batches of it.

        Args:
            epoch: its number, from 0.
            start: sequences of the epoch that finished steps have consumed on all ranks; none is read again.
        """


@runtime_checkable
class PlacedLoader(Protocol):
    """Optional members of a loader whose place a checkpoint holds, as that of a stream."""

    def place(self) -> Mapping[str, Any] | None:
        """Return the place after the batches so far as plain values."""

    def go_to(self, place: Mapping[str, Any]) -> None:
        """Begin the next epoch at a saved place."""


@runtime_checkable
class LogitsMetric(Protocol):
    """A metric of evaluation that counts something in the logits, which nobody keeps."""

    def sum_logits(self, logits: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Return sums over some trained tokens, each of shape () and on the device, without waiting for it.

        Args:
            logits: in single precision at least, shape (tokens, vocabulary); they may be overwritten afterwards.
            targets: the ids of the tokens that they predict, shape (tokens,).
        """

    def result(self, sums: Mapping[str, float]) -> Mapping[str, float]:
        """Return the values to log from the sums over all tokens of a set and all ranks."""


@runtime_checkable
class GenerationMetric(Protocol):
    """A metric of evaluation that compares generated answers with those of the data."""

    def score(self, generations: Sequence[Generation]) -> Mapping[str, float]:
        """Return the values to log from the answers of a set, on all ranks those of all ranks, in the same order."""


class CheckpointEngine(Protocol):
    """Writes, finds and reads checkpoints of one kind.

    Optional members are those of :class:`CheckpointEngineDefaults`.
    """

    config: Any

    def save(self, trainer: Trainer) -> Path | None:
        """Save the trainer; returns what was written, or None while that is still going on in the background.
        Collective."""

    def latest(self) -> Path | None:
        """The newest whole checkpoint that a run can resume from, or None."""

    def can_load(self, path: Path) -> bool:
        """Whether ``path`` holds a checkpoint of this kind that a run can resume from."""

    def load(self, trainer: Trainer, path: Path) -> None:
        """Load ``path`` into the trainer. Collective."""


# ---------------------------------------------------------------------------------------------- optional members


class StrategyDefaults:
    """Optional members of a strategy, with their defaults."""

    data_world: World | None = None
    """This rank's place among those that get sequences of their own, where several ranks share the tokens of one."""
    usable_when_closed = False
    """Whether it can still evaluate and save after :meth:`Strategy.close`."""
    dtype: torch.dtype | None = None
    """The type that it computes in, where weights may have another one."""
    shards_weights = False
    """Whether a rank holds only its shards of the weights between two calls of :meth:`Strategy.compute`."""
    prepare_frozen_model: Callable[[Module, ExtraModel], Module] | None = None
    """Cast, place and shard a frozen model of ``make_models``, so that it can be called whole in any hook, and in parts
    inside :meth:`Strategy.compute`. Collective. A run with such a model is refused when omitted."""

    watch_updates: Callable[[Callable[[Any], None], Callable[[], None]], None] | None = None
    """Take two functions: one to call with the gradient norm, or None, after clipping and before the weights change;
    and one to call before gradients are cleared. A run is refused when omitted and a plugin implements these events."""

    @staticmethod
    def take_sizes(recipe: Recipe) -> None:
        """Take the recipe with the ``micro_batch_size`` that was found for ``auto``, before anything else is built."""

    @staticmethod
    def elements(parameter: Tensor) -> int:
        """Return how many elements a parameter has over all ranks, where a rank holds a shard of it."""
        return parameter.numel()

    @staticmethod
    def divide(batch: Batch) -> Batch:
        """Return this rank's part of a micro-batch on the host.

        Where ranks share tokens it holds ``shift_labels`` (those of the next token) in the place of ``labels``,
        and ``shift_token_weights`` in that of ``token_weights``, if there are any.
        """
        return batch


class SchedulerDefaults:
    """Optional members of a scheduler, with their defaults."""

    warmup_steps = 0
    """Optimizer steps in which the learning rate rises."""
    base_lrs: Sequence[float] | None = None
    """The learning rate of each parameter group that the schedule scales, as torch's keep it. With it a run may resume
    with another ``optimizer.lr``; without it the rates stay as saved."""


class LoaderDefaults:
    """Optional members of a loader, with their defaults."""

    @staticmethod
    def rows_of(epoch: int, start: int, count: int) -> Sequence[int]:
        """Return the numbers of ``count`` rows of an epoch from ``start`` on, over all ranks; none if they have none.

        Messages name them with :meth:`DatasetDefaults.row_name`.
        """
        return ()


class DatasetDefaults:
    """Optional members of a data set, with their defaults."""

    @staticmethod
    def row_name(row: int) -> str:
        """Return what messages call a row: the examples of which it was made, and where they stand."""
        return f"row {row}"


class CheckpointEngineDefaults:
    """Optional members of a checkpoint engine, with their defaults."""

    output_dir: Path | None = None
    """The folder that it writes to. No other run may use that meanwhile, or overwrite its :meth:`results` later."""

    unsaved: tuple[int, Exception] | None = None
    """Step and error of the last background save, where it failed and such a failure does not end the run. The error is
    raised at the end of the run if that was its last state."""

    load_weights: Callable[[Module, Path], int] | None = None
    """Load the weights of a checkpoint, and nothing else, into a model as ``make_model`` built it in a process without
    other ranks; returns the checkpoint's step. ``hooktrain export`` refuses the engine's checkpoints when omitted."""

    export: Callable[[ModelExport, Path], None] | None = None
    """Write a model that belongs to no run into a new folder, as ``hooktrain export`` does. The model is not used
    afterwards. The engine must also declare :attr:`ConfigDefaults.exports`."""

    @staticmethod
    def best() -> Path | None:
        """Return the checkpoint with the best value of the metric that the engine's config names, or None."""

    @staticmethod
    def results() -> Sequence[Path]:
        """Return what earlier saves have left in ``output_dir``, the newest first."""
        return ()

    @staticmethod
    def clean() -> None:
        """Delete what an interrupted save has left; called once the run owns ``output_dir``, on the main rank."""

    @staticmethod
    def check(trainer: Trainer, path: Path) -> None:
        """Raise CheckpointError on all ranks where the run may not resume from ``path``. Collective.

        It is called before there is a model. ``hooktrain.provenance`` gives what is to be kept for that, and
        ``hooktrain.require_same`` compares.
        """

    @staticmethod
    def provenance(path: Path) -> Mapping[str, Any] | None:
        """Return what ``hooktrain.provenance`` gave when ``path`` was saved, or None where that was not kept."""
        return None

    @staticmethod
    def finish(trainer: Trainer, wait: bool) -> Path | None:
        """Return the path of what was saved in the background since the last call, or None. Collective.

        With ``wait`` nothing is still being written afterwards. A rank that has written its part says so with
        ``trainer.requests.save_ended()``.
        """


class ConfigDefaults:
    """Optional class variables and properties of a part's config class, with their defaults."""

    shorthand: str | None = None
    """The field that text, and in a plugin's own settings a list, true or false, in the recipe stands for."""
    listed = True
    """Whether listings, the schema and messages name the part; not where a recipe file cannot hold one."""
    trainer_types: Collection[str] = ()
    """Trainer types that the part is compatible with besides those that name it; ``"*"`` is all of them."""
    output_dir: Path | None = None
    """The folder that a checkpoint engine writes to; its own choice when omitted."""
    overwrite = False
    """Whether a checkpoint engine may begin in a folder with results of another run."""
    save_best = ""
    """The metric after whose best values a checkpoint engine saves."""
    save_best_mode = "min"
    """Whether the lowest (``min``) or the highest (``max``) value of it is the best."""
    exports = False
    """Whether a checkpoint engine writes what other programs load, which ``Trainer.save`` chooses by default."""
    save_dtype: str | None = None
    """The precision in which such a checkpoint engine writes weights: ``fp32``, ``bf16``, ``fp16``, or their own."""
    needs_logits = False
    """Whether the part looks at logits that the model returns."""
    provides_outputs: Sequence[str] = ()
    """The outputs of the model that a loss returns as ``LossSum.outputs`` where the batch has ``needed_outputs``."""
    loss_terms: Mapping[str, float] = {}
    """The terms that a loss returns itself as ``LossSum.terms``, each with its coefficient, where the recipe tells."""
    hides_logits = ""
    """What to write for logits to be made, where the part makes none."""
    sequence_parallel = 1
    """Ranks that share the tokens of a sequence under a strategy."""
    dtype = "auto"
    """The precision of a strategy or model, for estimates: ``auto``, ``fp32``, ``bf16`` or ``fp16``."""
    device = "auto"
    """The device of a strategy, for estimates: ``auto`` or as torch names it."""
    lr: float | None = None
    """The learning rate of an optimizer, for trackers that show it."""
    weight_decay = 0.0
    """The weight decay of an optimizer, likewise."""
    needs_matrices = False
    """Whether an optimizer updates weights as matrices, which a strategy that flattens them does not have."""
    plain_states = True
    """Whether an optimizer's state is made of numbers and tensors of its parameters' shapes, which ranks can divide."""
    shards_weights = False
    """Whether under a strategy a rank holds only its shards of the weights."""
    keeps_packed_weights = True
    """Whether a strategy leaves frozen weights that a library has packed as they are."""
    gathers_by_module = False
    """Whether under a strategy weights are gathered each time that a single module is called, as by ZeRO-3."""
    freezes_model = False
    """Whether a plugin's settings freeze the model and train weights of their own, as an adapter's do."""
    needs_plain_base = False
    """Whether these weights of its own are made of a base that is quantized only after that, by the plugin."""


def member(of: object, defaults: type, name: str) -> Any:
    """Return an optional member of a part or config, or its default."""
    return getattr(of, name, getattr(defaults, name))
