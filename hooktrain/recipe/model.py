"""The recipe: everything that determines a run, in frozen classes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs

from hooktrain.config import (
    AUTO,
    BatchSize,
    Bytes,
    Seconds,
    above,
    at_least,
    between,
    field,
    one_of,
    part,
    unstructure,
)
from hooktrain.errors import Complaint, RecipeError
from hooktrain.masking import masked, masked_paths
from hooktrain.plugin.config import PluginsConfig
from hooktrain.protocols import ConfigDefaults, member
from hooktrain.recipe.libyaml import dump
from hooktrain.types import World

__all__ = ["NO_LIMIT", "Recipe"]

NO_LIMIT = (
    "given auto on a processor, whose memory other programs share, without memory_limit; write memory_limit: 12GiB or"
    " another size"
)


def _interval(instance: Any, attribute: Any, value: Any) -> None:
    if value != "epoch" and (value < 0 or (value > 1 and value % 1)):
        raise ValueError(f"given {value}, expected a number of steps, a fraction of an epoch from 0 to 1, or epoch")


def _no_base(instance: Any, attribute: Any, value: Any) -> None:
    if value is not None:  # the reader of files has taken it
        raise ValueError(f"given '{value}' from Python or with -o, expected in the recipe's file; write it there")


def _limit(instance: Any, attribute: Any, value: Any) -> None:
    if value is not None and (value <= 0 or (value > 1 and value % 1)):
        raise ValueError(f"given {value}, expected a number of micro-batches, or a share from 0 to 1")


@attrs.frozen(kw_only=True)
class Recipe:
    """Everything that determines a run."""

    type: str = field()
    """Trainer type: which kinds of parts the run has, and their defaults. When omitted, it is the installed
    plugins'."""
    base: str | None = field(default=None, validator=_no_base, affects_training=False)
    """Another recipe's file, seen from this one's, whose values hold where this file has none. Sections are merged, key
    by key, unless they name another ``type``; lists are replaced."""
    run_dir: Path | None = field(default=None, affects_training=False)
    """Folder for metrics, the resolved recipe and checkpoints; ``runs/<name of the recipe>`` when omitted."""
    micro_batch_size: BatchSize = field(default=1)
    """Rows that go through the model at once, on each rank. ``auto`` takes the largest divisor of ``global_batch_size``
    by the ranks that fits: a process of its own tries sizes on the longest sequences before the run. A resumed run
    has the size of the run before."""
    memory_limit: Bytes | None = field(default=None, validator=at_least(1), affects_training=False)
    """What a rank may take of its device's memory with ``micro_batch_size: auto``, such as ``12GiB``, or as a whole
    process of the processor's, where it must be given; when omitted, 95 % of what is free on the device."""
    gradient_accumulation_steps: int = field(default=1, validator=at_least(1))
    """Micro-batches in one optimizer step, on each rank; where ``global_batch_size`` is written, it follows from it."""
    global_batch_size: int | None = field(default=None, validator=at_least(1))
    """Rows of one optimizer step over all ranks, in place of ``gradient_accumulation_steps``; a multiple of
    ``micro_batch_size`` times the ranks that get rows of their own."""
    epochs: int | float | None = field(default=None, validator=above(0))
    """Passes over the training rows, which may be a fraction such as ``0.5``; 1 when neither this nor ``train_iters``
    is given."""
    train_iters: int | None = field(default=None, validator=at_least(1))
    """Optimizer steps; together with ``epochs``, whichever ends first."""
    exit_iteration: int = field(default=0, validator=at_least(0), affects_training=False)
    """Stop after so many optimizer steps without changing the schedule; 0 does not."""
    exit_iteration_this_run: int = field(default=0, validator=at_least(0), affects_training=False)
    """The same, with the steps counted from where this run started or resumed; 0 does not."""
    max_time: Seconds = field(default=0.0, validator=at_least(0), affects_training=False)
    """Save and end the run so early that it is over after this time, such as ``2h``, counted from the start of the
    process; 0 does not. The schedule stays that of the complete run."""
    max_tokens: int = field(default=0, validator=at_least(0), affects_training=False)
    """Stop after so many tokens, such as ``1B``, over all ranks and without padding; 0 does not. The schedule stays
    that of the complete run."""
    min_iterations: int = field(default=0, validator=at_least(0))
    """Repeat the rows of ``epochs`` until an epoch has at least so many optimizer steps; 0 does not."""
    eval_interval: Literal["epoch"] | int | float = field(default=0, validator=_interval, affects_training=False)
    """Optimizer steps between evaluations, ``epoch``, or a fraction of an epoch such as ``0.25``; 0 evaluates only at
    the end."""
    eval_delay: int = field(default=0, validator=at_least(0), affects_training=False)
    """Optimizer steps before the first evaluation by ``eval_interval``."""
    eval_at_start: bool = field(default=False, affects_training=False)
    """Whether to evaluate before the first step as well."""
    eval_micro_batch_size: int | None = field(default=None, validator=at_least(1), affects_training=False)
    """Rows of an evaluation micro-batch; ``micro_batch_size`` when omitted."""
    limit_train_batches: int | float | None = field(default=None, validator=_limit)
    """Train on so many micro-batches of each rank only, the same in each epoch; a fraction such as ``0.1`` is
    a share of the data."""
    limit_eval_batches: int | float | None = field(default=None, validator=_limit, affects_training=False)
    """Evaluate on so many micro-batches of each rank and set only; a fraction is a share of the set."""
    log_interval: int = field(
        default=1,
        validator=at_least(1),
        aliases=("loss_log_interval", "train_log_iter_interval"),
        affects_training=False,
    )
    """Optimizer steps between log lines; between two of them nothing waits for the device."""
    gradient_clipping: float = field(default=1.0, validator=at_least(0))
    """Largest norm of all gradients together; 0 does not clip."""
    on_nan: str = field(default="stop", validator=one_of("stop", "skip"), affects_training=False)
    """What happens when loss or gradients are not finite: end the run, or leave the step out and count it."""
    max_skipped_steps: int = field(default=20, validator=at_least(0), affects_training=False)
    """Steps in a row without an update that end the run with an error, which names the first of them; 0 never does."""
    hang_timeout: Seconds = field(default=3600.0, validator=at_least(0), affects_training=False)
    """Seconds within which a step must end; an evaluation and a save may each take five times as long. 0 sets no
    limit."""
    on_hang: str = field(default="stop", validator=one_of("stop", "warn"), affects_training=False)
    """What happens when nothing ends within ``hang_timeout``, once the stacks of all threads were printed with the hook
    that is running: end the run with an error, or warn and continue to wait."""
    seed: int = field(default=42, validator=between(0, 2**32 - 1))
    """Seed of weights, dropout and the order of rows."""
    skip_validation: bool = field(default=False, affects_training=False)
    """Admit parts that the trainer type does not list as compatible."""
    allow_changes: tuple[str, ...] = field(default=(), affects_training=False)
    """Changes since the checkpoint that a resumed run may have although they affect the training, such as
    ``optimizer.lr`` or ``data``; ``*`` is everything."""
    profile_hooks: bool = field(default=False, affects_training=False)
    """Whether to show, at the end, what time, waits for the device and memory each plugin took in each hook."""
    strategy: Any = part("strategy", affects_training=False)
    tokenizer: Any = part("tokenizer")
    data: Any = part("data")
    loss: Any = part("loss")
    model: Any = part("model")
    optimizer: Any = part("optimizer")
    scheduler: Any = part("scheduler")
    checkpoint: tuple[Any, ...] = part("checkpoint", many=True, affects_training=False)
    plugins: PluginsConfig = field(factory=PluginsConfig)
    """Which plugins are active."""
    settings: Mapping[str, Any] = field(factory=dict)
    """Plugins' own settings by name; in the recipe they are top-level keys."""
    types: Mapping[Any, str] = attrs.field(factory=dict, repr=False, metadata={"internal": True})
    """The ``type`` of each config class, for writing the recipe out again."""
    name: str = attrs.field(default="recipe", metadata={"internal": True})
    """The recipe file's name without its ending."""
    is_batch_size_open: bool = attrs.field(default=False, metadata={"internal": True})
    """Whether ``micro_batch_size`` is to be found at the start of the run; it is 1 until then."""

    def as_dict(self) -> dict[str, Any]:
        """The whole recipe, defaults included, as plain values; reading it again gives the same recipe."""
        hidden = {"settings", "types", "name", "is_batch_size_open", "skip_validation", "base"}
        hidden |= {"global_batch_size"} if self.global_batch_size is None else {"gradient_accumulation_steps"}
        made = {item.name: unstructure(getattr(self, item.name), self.types) for item in attrs.fields(Recipe)}
        absent = {"run_dir", "memory_limit", *self.parts()}
        plain = {
            key: value for key, value in made.items() if key not in hidden and not (value is None and key in absent)
        }
        if self.skip_validation:
            plain["skip_validation"] = True
        if self.is_batch_size_open or self.micro_batch_size == AUTO:
            plain["micro_batch_size"] = "auto"
        plain.update({name: unstructure(config) for name, config in self.settings.items()})
        return plain

    def for_ranks(self, world: World) -> Recipe:
        """The recipe with the ``gradient_accumulation_steps`` that ``global_batch_size`` means on so many ranks.

        Raises:
            RecipeError: the sizes do not divide, or ``auto`` has nothing to divide or no limit.
        """
        if self.micro_batch_size == AUTO:
            self._require_limits()
            return attrs.evolve(self, micro_batch_size=BatchSize(1), is_batch_size_open=True).for_ranks(world)
        if self.global_batch_size is None:
            return self
        ranks = self.data_ranks(world)
        at_once = self.micro_batch_size * ranks
        steps, rest = divmod(self.global_batch_size, at_once)
        if rest:
            near = " or ".join(str(size) for size in (steps * at_once, (steps + 1) * at_once) if size)
            text = (
                f"given {self.global_batch_size}, expected a multiple of the {at_once} rows at once (micro_batch_size"
                f" {self.micro_batch_size} on {ranks} rank{'s' * (ranks > 1)}); write {near}, or another size at once"
            )
            raise RecipeError([Complaint("global_batch_size", text)])
        return attrs.evolve(self, gradient_accumulation_steps=steps)

    def data_ranks(self, world: World) -> int:
        """How many ranks get rows of their own."""
        return max(1, world.world_size // int(member(self.strategy, ConfigDefaults, "sequence_parallel")))

    def _require_limits(self) -> None:
        found = []
        if self.global_batch_size is None:
            text = "given auto without global_batch_size, which it divides; write global_batch_size: 32, or a number"
            found.append(Complaint("micro_batch_size", text))
        if self.memory_limit is None and str(member(self.strategy, ConfigDefaults, "device")) == "cpu":
            found.append(Complaint("micro_batch_size", NO_LIMIT))
        if found:
            raise RecipeError(found)

    def total_steps(self, per_epoch: int) -> int:
        """Optimizer steps of a run whose epochs have ``per_epoch`` steps each, by ``epochs`` and ``train_iters``."""
        limits = [] if self.train_iters is None else [self.train_iters]
        if self.epochs is not None or not limits:
            passes = (self.epochs or 1) * max(1, -(-self.min_iterations // max(1, per_epoch)))
            limits.append(math.ceil(passes * per_epoch - 1e-9))
        return min(limits)

    def parts(self) -> dict[str, Any]:
        """The configs of the parts by kind; a tuple where there may be several, and None where there is none."""
        return {item.name: getattr(self, item.name) for item in attrs.fields(Recipe) if item.metadata.get("kind")}

    def as_yaml(self) -> str:
        """The whole recipe as YAML; passwords and tokens are masked, and a comment at its beginning names them."""
        plain = self.as_dict()
        paths = masked_paths(plain)
        named = f"# masked: {', '.join(paths)}; write them again to run this recipe\n" if paths else ""
        return named + dump(masked(plain))

    def digest(self) -> str:
        """Text that is equal for two recipes exactly when they say the same, ``run_dir`` aside."""
        plain = {key: value for key, value in self.as_dict().items() if key != "run_dir"}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
