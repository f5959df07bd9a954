"""The plain data that travels between the engine and its plugins: world, state, losses, counts, datasets."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import attrs

from hooktrain.errors import HooktrainError
from hooktrain.renamed import new_name, no_attribute

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module

    from hooktrain.recipe.model import Recipe

__all__ = [
    "Batch",
    "BatchCounts",
    "Data",
    "DataEstimate",
    "Dataset",
    "ExtraModel",
    "Shard",
    "LossSum",
    "MemoryEstimate",
    "ModelEstimate",
    "OptimizerStep",
    "PerSecond",
    "ExamplePreview",
    "StepOutput",
    "StoredTensors",
    "TrainedState",
    "TrainerState",
    "TrainerType",
    "World",
]

Batch = dict[str, Any]
"""A micro-batch in transformers' terms: names to tensors, the first dimension being sequences.

These keys have a meaning for the engine or for first-party plugins; a data kind may add others for its loss.

- ``input_ids``, ``labels`` (-100 where nothing is trained) and ``position_ids``, which begin at 0 with each document,
  of shape (sequences, tokens); ``attention_mask`` where sequences are padded and no document lengths are known.
- What :func:`hooktrain.document_keys` makes: ``document_lengths``, ``cu_seq_lens_q``, ``cu_seq_lens_k``,
  ``max_length_q`` and ``max_length_k``. Documents of one sequence then do not see each other.
- For ``count_batch``, on the host: ``tokens``, the number without padding; ``denominator``, what the micro-batch
  contributes to the number that the loss is divided by; and ``counts``, its unit, such as ``pairs``. Without the latter
  two, trained labels are counted.
"""


@attrs.frozen(kw_only=True)
class World:
    """This process among those of the run.

    Attributes:
        rank: number of this process among all of them, from 0.
        world_size: how many processes the run has.
        local_rank: number of this process on its host, from 0.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process is rank 0, the one that prints and writes shared files."""
        return self.rank == 0

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> World:
        """Read ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK``, as torchrun, deepspeed and schedulers set them.

        Raises:
            HooktrainError: when one of them is not a whole number, or the rank is not below the world size.
        """
        numbers = {}
        for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
            text = environ.get(name, default)
            if not text.isdigit():
                raise HooktrainError(f"environment variable {name}: given '{text}', expected a whole number from 0")
            numbers[name] = int(text)
        if numbers["RANK"] >= numbers["WORLD_SIZE"]:
            raise HooktrainError(
                f"environment: RANK is {numbers['RANK']} and WORLD_SIZE {numbers['WORLD_SIZE']}, but ranks count from 0"
                " to one less than the world size; let one launcher set both"
            )
        return cls(rank=numbers["RANK"], world_size=numbers["WORLD_SIZE"], local_rank=numbers["LOCAL_RANK"])

    def to_environment(self, port: int) -> dict[str, str]:
        """Return the variables of this process where all are on one host and meet at a store of their parent.

        Args:
            port: the store's.
        """
        return {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_WORLD_SIZE": str(self.world_size),
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.local_rank),
        }


@attrs.define(kw_only=True)
class TrainerState:
    """The state of the loop that a checkpoint holds; everything else is rebuilt from the recipe.

    Attributes:
        global_step: optimizer steps finished; a skipped window counts, so that the schedule and the data stay aligned.
        epoch: number of the current epoch, from 0.
        epoch_step: optimizer steps finished in the current epoch.
        sequences: sequences of the training set that finished steps of this epoch have consumed, over all ranks.
        tokens: tokens trained on so far over all ranks, padding excluded.
        supervised_tokens: those of them that carried a loss.
        counted: the sum of all denominators under their unit, such as ``pairs``, where that is not ``tokens``.
        skipped_steps: windows that did not step the optimizer (no supervised token, or non-finite gradients).
        consecutive_skipped_steps: those of them since the optimizer last stepped.
        first_skipped: the first of these, in words: its step, why it was skipped, and its examples.
        stop_reason: why the run was asked to end before its horizon, or None.
        evaluated_at: step of the newest evaluation, or -1.
        evaluation_due: whether an evaluation of the newest step is still to be made: it was left out as the run had to
            end, or has not been logged.
        log_due: whether the log line of the newest step is still to be written.
        unlogged: sums since the last log line, as ``Meter.unlogged`` returns them.
        saves_due: the checkpoint engines that are saving, as ``<number> <type>``, each with the reason.
        metrics: the latest value of every logged metric.
        best: the best value so far of each metric by which checkpoints are saved, as ``<min or max> <metric>``.
    """

    global_step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    sequences: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    counted: dict[str, float] = attrs.field(factory=dict)
    skipped_steps: int = 0
    consecutive_skipped_steps: int = 0
    first_skipped: str = ""
    stop_reason: str | None = None
    evaluated_at: int = -1
    evaluation_due: bool = False
    log_due: bool = False
    unlogged: dict[str, Any] = attrs.field(factory=dict)
    saves_due: dict[str, str] = attrs.field(factory=dict)
    metrics: dict[str, float] = attrs.field(factory=dict)
    best: dict[str, float] = attrs.field(factory=dict)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise no_attribute("TrainerState", name)

    def begin_epoch(self, epoch: int) -> None:
        """The epoch before it is over."""
        self.epoch, self.epoch_step, self.sequences = epoch, 0, 0

    def count(self, sequences: int, tokens: int, targets: int, counted: Mapping[str, float]) -> None:
        """A step has ended; ``counted`` is its denominator under its unit."""
        self.sequences += sequences
        self.tokens += tokens
        self.supervised_tokens += targets
        for unit in counted.keys() - {"tokens", ""}:
            self.counted[unit] = self.counted.get(unit, 0.0) + counted[unit]

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        """An evaluation has ended; without metrics it was left out half-way, and is still due."""
        self.metrics.update(metrics)
        self.evaluation_due = not metrics or (self.evaluation_due and self.log_due)  # till it is logged
        self.evaluated_at = self.global_step if metrics else self.evaluated_at


class BatchCounts(NamedTuple):
    """Sizes of a micro-batch, counted on the host before it moves to the device.

    Attributes:
        denominator: what the micro-batch contributes to the number that the loss is divided by: how many of what
            ``counts`` says it holds, or the sum of their weights. 0 where nothing is trained.
        tokens: tokens, padding excluded.
        num_target_tokens: trained tokens, that is shifted labels other than -100.
        counts: the unit of ``denominator``: ``tokens``, ``pairs``, ``sequences``, or a loss's own; where their weights
            are summed ``weighted tokens`` and so on, which may be added to a number of tokens.
    """

    denominator: float
    tokens: int
    num_target_tokens: int
    counts: str = "tokens"

    def __getattr__(self, name: str) -> Any:
        raise no_attribute("BatchCounts", name)


class LossSum(NamedTuple):
    """Result of ``compute_loss``.

    Attributes:
        total: the undivided *sum* of the loss over the micro-batch, shape (), with a graph. Only the engine divides, by
            the sum of the denominators of all micro-batches of a step on all ranks.
        denominator: what the micro-batch contributes to that sum; the engine compares it with ``count_batch``'s.
        sums: what else is to be logged, divided in the same way, such as ``token_accuracy``: names to sums, of
            shape () and on the device. Every micro-batch, on every rank, must have the same names.
        counts: the unit of ``denominator``, as in :class:`BatchCounts`.
    """

    total: Tensor
    denominator: float
    sums: Mapping[str, Tensor] = MappingProxyType({})
    counts: str = "tokens"

    def __getattr__(self, name: str) -> Any:
        raise no_attribute("LossSum", name)


class PerSecond(NamedTuple):
    """A metric that the engine divides by the seconds of training since the last log line.

    A plugin cannot: on a GPU the time is known once the device has done what was asked of it, which the engine waits
    for after ``collect_metrics``.

    Attributes:
        amount: what has been done since the last log line, on this rank.
    """

    amount: float


def _tell_new_names(kind: Any) -> None:
    """Have a named tuple name the new keyword to whoever makes one with an old one."""
    make = kind.__new__

    def new(cls: type, *values: Any, **named: Any) -> Any:
        for name in named.keys() - set(kind._fields):
            renamed = new_name("attribute", f"{kind.__name__}.{name}")
            raise TypeError(f"{kind.__name__}() got an unexpected keyword argument '{name}'{renamed}")
        return make(cls, *values, **named)

    kind.__new__ = new


for _kind in (BatchCounts, LossSum):
    _tell_new_names(_kind)


class OptimizerStep(NamedTuple):
    """Result of ``run_optimizer_step``.

    Attributes:
        grad_norm: norm of all gradients before clipping, shape (), or None where nobody asked for it.
        stepped: False where the update was left out.
    """

    grad_norm: Tensor | float | None
    stepped: bool = True


class StepOutput(NamedTuple):
    """Result of ``run_step``.

    Attributes:
        total: loss summed over this rank's supervised tokens of the window, shape (), detached and on the device.
        grad_norm: as in :class:`OptimizerStep`.
        stepped: as in :class:`OptimizerStep`.
    """

    total: Tensor
    grad_norm: Tensor | float | None = None
    stepped: bool = True


class Shard(NamedTuple):
    """A stretch of a tensor that may be spread over ranks: what a strategy gives to a checkpoint.

    Attributes:
        name: of the tensor.
        shape: of the whole tensor.
        start: place of the stretch's first element in the flattened tensor.
        values: the stretch, shape (elements,), or the whole tensor in its own shape.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    values: Tensor


@attrs.frozen
class TrainedState:
    """A rank's share of what is trained, which no other rank gives.

    Attributes:
        model: stretches of the weights and buffers, under their names in the bare model; tied weights once.
        optimizer: stretches of the optimizer's tensors, named ``<parameter>/<key>``, such as ``head.weight/exp_avg``;
            the layout of those that have not their parameter's is in ``rest``.
        rest: everything else, equal on all ranks: numbers, text, lists, mappings and small tensors.
    """

    model: Sequence[Shard]
    optimizer: Sequence[Shard]
    rest: Mapping[str, Any]


class StoredTensors(Protocol):
    """Tensors of a checkpoint, whoever saved them and in how many pieces."""

    def names(self) -> Collection[str]:
        """The tensors that there are."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a whole tensor."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements ``start`` to ``stop`` of the flattened tensor, shape (stop - start,), on the CPU."""


class Dataset(Protocol):
    """A map-style data set. Optional members are those of :class:`DatasetDefaults`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@attrs.define(kw_only=True)
class Data:
    """Result of ``make_data``.

    Attributes:
        train: the rows to train on.
        evaluation: named sets of rows to evaluate on.
        collate: turns a list of rows into a micro-batch of CPU tensors, with the keys of :data:`Batch`.
        shuffle: whether the rows of an epoch are drawn in an order of their own.
        workers: processes that read and collate ahead; 0 does it in the training process.
        report: facts about the preparation, kept in the run directory; of its entries ``summary`` is a line to print
            and ``warnings`` a list of them.
        fingerprint: text that is equal on two ranks exactly when their rows are.
        train_fingerprint: text that is equal in two runs exactly when their training rows are, for a resume; nothing
            where only their number can be compared.
        order: makes the order of an epoch's rows, shape (rows,), from a generator that is seeded for the epoch, the
            number of rows in a step and the epoch's number, from 0; a plain permutation when omitted. Not asked when
            ``shuffle`` is off.
        lengths: tokens of each training row, shape (rows,), as a curriculum needs them; None where they are not known.
        loader: builds what hands out the windows, from what ``make_loader`` is given, for rows that cannot be addressed
            by number, such as a stream's; ``WindowLoader`` when omitted.
    """

    train: Dataset
    evaluation: Mapping[str, Dataset] = attrs.field(factory=dict)
    collate: Callable[[list[Any]], Batch]
    shuffle: bool = True
    workers: int = 0
    report: Mapping[str, Any] = attrs.field(factory=dict)
    fingerprint: str = ""
    train_fingerprint: str = ""
    order: Callable[[torch.Generator, int, int], Tensor] | None = None
    lengths: Tensor | None = None
    loader: Callable[[Dataset, Data, Recipe, World], Any] | None = None


@attrs.frozen
class ExtraModel:
    """A further model of a run, as ``make_models`` returns it: a reference, a teacher, a reward, a critic.

    A frozen one is in evaluation mode, and is in no optimizer, checkpoint or export.

    Attributes:
        build: builds the module. It is called with the random state of the recipe's ``seed``, in the context in which
            the strategy has models built.
        trainable: whether it is trained with the run's model: it is in what ``make_optimizer`` is given, and in
            checkpoints.
        dtype: the type of a frozen model's weights, ``fp32``, ``bf16`` or ``fp16``; as built when omitted, or under
            ZeRO 1 to 3 the precision of the computation.
        offload: whether a frozen model's weights are kept in the processor's memory, and are on the device only while
            they are used.
        build_meta: builds the module without weights, for ``hooktrain plan``, under ``torch.device("meta")``; ``build``
            is called when omitted.

    Raises:
        ValueError: ``dtype`` is unknown; or it or ``offload`` is set for a trainable model, which is kept as the run's
            own model is.
    """

    build: Callable[[], Module]
    trainable: bool = False
    dtype: str | None = None
    offload: bool = False
    build_meta: Callable[[], Module] | None = None

    def __attrs_post_init__(self) -> None:
        if self.dtype not in (None, "fp32", "bf16", "fp16"):
            raise ValueError(f"ExtraModel: dtype is {self.dtype!r}, expected 'fp32', 'bf16', 'fp16' or None")
        if self.trainable and (self.dtype or self.offload):
            name = "dtype" if self.dtype else "offload"
            raise ValueError(
                f"ExtraModel: {name} is set for a trainable model, expected it for a frozen one only; leave it out, as"
                " the strategy keeps a trainable model as it keeps the run's own"
            )

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """``dtype`` as torch has it."""
        import torch

        return {None: None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.dtype]


@attrs.frozen
class ExamplePreview:
    """A row as ``hooktrain data --show`` prints it.

    Attributes:
        label: which row of which source it is.
        pieces: its text in order, each piece with whether it is trained and the rule that decided it.
        note: what else there is to say.
    """

    label: str
    pieces: Sequence[tuple[str, bool, str]]
    note: str = ""


@attrs.frozen
class TrainerType:
    """Meaning of a value of the recipe's ``type``.

    Attributes:
        parts: for each kind of part the compatible names; the first is the default, ``"*"`` admits every other one.
        summary: one line for listings.
        listed: whether listings, the schema and messages name it; not if a recipe file cannot be of this type.
        default: whether a recipe without ``type`` is of this type; of the installed ones only one may be.
    """

    parts: Mapping[str, Sequence[str]]
    summary: str = ""
    listed: bool = True
    default: bool = False


@attrs.frozen(kw_only=True)
class ModelEstimate:
    """The sizes of a model and of what is kept for each of its weights.

    Attributes:
        module: the model as ``make_meta_model`` made it; its tensors have shapes and types, and hold nothing.
        parameters: numbers in all weights, tied ones once.
        trainable: those of them that are trained.
        weight_bytes: all weights in the types that they are kept in.
        trainable_bytes: those of them that are trained.
        state_numbers: numbers that the optimizer keeps; None when that is not known.
        state_bytes: the same in bytes.
        activation_bytes: what a micro-batch keeps for the backward pass, by what it is; None when not known.
        dtypes: numbers by type of weight.
        dtype_is_set: whether the weights of a frozen model stay in the type that they have.
        offload: whether the weights of a frozen model are kept in the processor's memory.
        frozen: the frozen models of ``make_models`` by name, sized in the same way. Trainable ones are counted with the
            model.
    """

    module: Module
    parameters: int
    trainable: int
    weight_bytes: int
    trainable_bytes: int
    state_numbers: int | None = None
    state_bytes: int | None = None
    activation_bytes: Mapping[str, int] | None = None
    dtypes: Mapping[str, int] = attrs.field(factory=dict)
    dtype_is_set: bool = False
    offload: bool = False
    frozen: Mapping[str, ModelEstimate] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class DataEstimate:
    """Expected size of an epoch; None is not known without preparing the data.

    Attributes:
        sequences: sequences of the data set, packs counting once: what a micro-batch consists of.
        tokens: tokens in them, padding excluded.
        supervised: those that carry a loss.
        longest: tokens of the longest sequence, or the most that there can be.
        how: where these figures come from, for people.
    """

    sequences: int | None = None
    tokens: int | None = None
    supervised: int | None = None
    longest: int | None = None
    how: str = ""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise no_attribute("DataEstimate", name)


@attrs.frozen(kw_only=True)
class MemoryEstimate:
    """Expected memory of the strategy in bytes for one rank.

    Attributes:
        device: bytes on the rank's device by what they are for.
        host: bytes in the processor's memory where the device is another one.
        peak: most that the device holds at once, when not all of ``device`` is there at the same time.
        notes: what the figures suppose, for people.
    """

    device: Mapping[str, int]
    host: Mapping[str, int] = attrs.field(factory=dict)
    peak: int | None = None
    notes: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        total = sum(self.device.values())
        return {
            "device": dict(self.device),
            "host": dict(self.host),
            "peak": total if self.peak is None else self.peak,
            "notes": list(self.notes),
        }
