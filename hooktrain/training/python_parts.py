"""The plugin that registers objects passed from Python (a model, a tokenizer, examples, functions) as parts."""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import attrs

from hooktrain.compat import name_of
from hooktrain.config import field
from hooktrain.errors import HooktrainError, ModelError, RanksDisagreeError
from hooktrain.markers import hookimpl
from hooktrain.protocols import Scheduler, missing_members
from hooktrain.types import Batch, Data, LossSum, TrainerType, World

if TYPE_CHECKING:
    import pluggy
    from torch.nn import Module
    from torch.optim import Optimizer

    from hooktrain.recipe.model import Recipe
    from hooktrain.training.trainer import Trainer

__all__ = ["PythonParts", "PythonModelConfig", "PythonSourceConfig", "describe"]

_SAMPLED = 4096
"""Entries of each weight by which two ranks' models are compared."""


@attrs.frozen(kw_only=True)
class PythonConfig:
    """A part that was built in Python and passed to ``hooktrain.Trainer``."""

    trainer_types: ClassVar[tuple[str, ...]] = ("*",)
    listed: ClassVar[bool] = False

    built_as: str = field(affects_training=False)
    """What it is: the name of its class or function."""


@attrs.frozen(kw_only=True)
class PythonTokenizerConfig(PythonConfig):
    """A tokenizer passed from Python."""


@attrs.frozen(kw_only=True)
class PythonModelConfig(PythonConfig):
    """A model passed from Python, trained in place."""

    name_or_path: str | None = field(default=None, affects_training=False)
    """Where it says that it comes from; its tokenizer is looked for there unless one is given."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = field(default="auto")
    """Precision of the forward pass, which the strategy sets up; ``auto`` leaves the choice to it."""
    weights_dtype: Literal["fp32", "bf16", "fp16"] | None = field(default=None)
    """Precision to which the weights are brought, in place; the one that they have when omitted."""
    attn_implementation: str = field(default="auto")
    """How attention is computed, for models that a plugin knows: what was chosen when it was loaded, unless given."""
    activation_checkpointing: bool | Literal["full", "selective"] | Mapping[str, Any] = field(
        default=False, affects_training=False
    )
    """Whether, and which, activations are computed again in the backward pass, for models that a plugin knows."""


@attrs.frozen(kw_only=True)
class PythonSourceConfig(PythonConfig):
    """Examples passed from Python."""

    name: str = field()
    """Of the evaluation set, or ``train_dataset``."""
    streaming: bool = field(default=False)
    """Whether they are read while training and never all kept; set for rows without a length."""


@attrs.frozen(kw_only=True)
class PythonDataConfig(PythonConfig):
    """Tokenized sequences passed from Python with the function that collates them: a ``hooktrain.Data``."""


@attrs.frozen(kw_only=True)
class PythonLossConfig(PythonConfig):
    """A function ``loss(model, batch, denominator) -> LossSum``."""


@attrs.frozen(kw_only=True)
class PythonOptimizerConfig(PythonConfig):
    """A function ``optimizer(model)``."""


@attrs.frozen(kw_only=True)
class PythonSchedulerConfig(PythonConfig):
    """A function ``scheduler(optimizer, total_steps)``."""


class PythonParts:
    """Builds the parts of ``type: python``, by returning the objects that were passed to :meth:`add`.

    It is always there, so that a run from Python and one from the command line have the same plugins; a recipe that
    says ``type: python`` where nothing was passed is an error. These types are listed only where objects were passed.
    """

    def __init__(self) -> None:
        self._parts: dict[str, Any] = {}
        self._hooks: Any = None
        self._digest: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_hooks": None}  # which belong to this process

    def add(self, kind: str, value: Any) -> None:
        """Keep a part, or rows under ``source <name>``, until they are asked for."""
        self._parts[kind] = value

    @hookimpl
    def register_hookspecs(self, pluginmanager: pluggy.PluginManager) -> None:
        self._hooks = pluginmanager.hook

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {
            "tokenizer": {"python": PythonTokenizerConfig},
            "model": {"python": PythonModelConfig},
            "source": {"python": PythonSourceConfig},
            "data": {"python": PythonDataConfig},
            "loss": {"python": PythonLossConfig},
            "optimizer": {"python": PythonOptimizerConfig},
            "scheduler": {"python": PythonSchedulerConfig},
        }

    @hookimpl
    def register_trainer_types(self) -> Mapping[str, TrainerType]:
        parts = {
            "data": ("python", "*"),
            "model": ("python", "*"),
            "loss": ("python", "*"),
            "optimizer": ("adamw", "*"),
            "scheduler": ("cosine", "*"),
            "strategy": ("torch", "*"),
            "checkpoint": ("full", "*"),
        }
        summary = "model, data and loss passed to hooktrain.Trainer in Python"
        return {"python": TrainerType(parts, summary, listed=bool(self._parts))}

    @hookimpl
    def make_tokenizer(self, config: Any) -> Any:
        return self._take("tokenizer") if isinstance(config, PythonTokenizerConfig) else None

    @hookimpl
    def make_data(self, config: Any) -> Data | None:
        if not isinstance(config, PythonDataConfig):
            return None
        data: Data = self._take("data")
        return data

    @hookimpl
    def load_source(self, config: Any) -> Any:
        return self._take(f"source {config.name}") if isinstance(config, PythonSourceConfig) else None

    @hookimpl
    def fingerprint_source(self, config: Any) -> str | None:
        if not isinstance(config, PythonSourceConfig) or config.streaming:
            return None
        from hooktrain.training.python_rows import digest

        return digest(self._take(f"source {config.name}"))

    @hookimpl
    def make_model(self, config: Any, tokenizer: Any, world: World, recipe: Recipe) -> Module | None:
        if not isinstance(config, PythonModelConfig):
            return None
        import torch
        from torch.distributed.tensor import DTensor

        model: Module = self._take("model")
        if any(parameter.is_meta for parameter in model.parameters()):
            raise ModelError(
                f"model: given a {describe(model)} on the meta device, expected one with weights; load or initialise"
                " them first"
            )
        if any(isinstance(each, DTensor) or not each.numel() for each in model.parameters()):  # FSDP2, ZeRO-3
            raise ModelError(
                f"model: given a {describe(model)} of which an earlier run has left each rank its share only; give what"
                " trainer.save wrote then, loaded anew"
            )
        if config.weights_dtype is not None:
            model.to({"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.weights_dtype])
        if world.world_size > 1:
            self._digest = _digest(model)
        adopted: Module | None = self._hooks.adopt_model(model=model, config=config, tokenizer=tokenizer, world=world)
        if adopted is not None:
            return adopted
        default = attrs.fields(PythonModelConfig)
        for name in ("attn_implementation", "activation_checkpointing"):
            if getattr(config, name) != getattr(default, name).default:
                raise ModelError(
                    f"model.{name}: given {getattr(config, name)!r}, but no plugin knows how a {describe(model)} does"
                    " that; set the model up before it is given, and leave the key out"
                )
        return model

    @hookimpl
    def count_positions(self, config: Any) -> int | None:
        if not isinstance(config, PythonModelConfig):
            return None
        found: int | None = self._hooks.count_positions(config=self._take("model"))
        return found

    @hookimpl
    def make_meta_model(self, config: Any) -> Module | None:
        return _without_weights(self._take("model")) if isinstance(config, PythonModelConfig) else None

    @hookimpl(tryfirst=True)
    def on_train_start(self, trainer: Trainer) -> None:
        if isinstance(trainer.recipe.model, PythonModelConfig):
            import torch

            trained = {parameter.dtype for parameter in trainer.model.parameters() if parameter.requires_grad}
            for dtype in trained & {torch.bfloat16, torch.float16}:
                trainer.host.warn(
                    f"model: it was given with weights in {str(dtype).removeprefix('torch.')}, in which an update"
                    " smaller than about 1/256 of a weight is lost; write model: {weights_dtype: fp32}, which brings"
                    " them to float32 and computes in the precision of the strategy"
                )
        if self._digest is None:
            return
        everyone = trainer.strategy.gather_objects(self._digest)
        for rank, theirs in enumerate(everyone):
            if theirs != everyone[0]:
                raise RanksDisagreeError(
                    f"model: the one given to rank {rank} has other weights than that of rank 0; call"
                    " torch.manual_seed before building it, or load the same weights everywhere"
                )

    @hookimpl
    def make_loss(self, config: Any) -> Callable[[Module, Batch, float], LossSum] | None:
        return self._take("loss") if isinstance(config, PythonLossConfig) else None

    @hookimpl
    def make_optimizer(self, config: Any, model: Module) -> Optimizer | None:
        if not isinstance(config, PythonOptimizerConfig):
            return None
        from torch.optim import Optimizer

        made = self._take("optimizer")(model)
        if not isinstance(made, Optimizer):
            raise HooktrainError(
                f"optimizer: the function {config.built_as} returned a {describe(made)}, expected a torch optimizer"
            )
        return made

    @hookimpl
    def make_scheduler(self, config: Any, optimizer: Optimizer, total_steps: int) -> Scheduler | None:
        if not isinstance(config, PythonSchedulerConfig):
            return None
        made: Scheduler = self._take("scheduler")(optimizer, total_steps)
        if missing_members(Scheduler, made):
            raise HooktrainError(
                f"scheduler: the function {config.built_as} returned a {describe(made)}, expected a torch scheduler"
            )
        return made

    def _take(self, kind: str) -> Any:
        if kind not in self._parts:
            raise HooktrainError(
                f"{kind}: the recipe says 'type: python', which stands for an object that is passed to"
                " hooktrain.Trainer in Python, and none was passed; pass it again, or name another type"
            )
        return self._parts[kind]


def describe(value: Any) -> str:
    """Return the name of an object for recipes and messages: a function's, or that of the class."""
    named = value if inspect.isroutine(value) or inspect.isclass(value) else type(value)
    return name_of(named)


def _without_weights(model: Module) -> Module:
    """A copy on the meta device, without ever copying a weight."""
    import torch
    from torch.nn import Parameter

    copies: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        kept = Parameter(empty, tensor.requires_grad) if isinstance(tensor, Parameter) else empty
        copies[id(tensor)] = kept
    return copy.deepcopy(model, copies)


def _digest(model: Module) -> str:
    """Text that tells two models apart by names, shapes and types of their weights and some values of each."""
    import torch

    made = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            continue
        made.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // _SAMPLED)].cpu().contiguous()
        made.update(bytes(some.view(torch.uint8).numpy()) if some.numel() else b"")
    return made.hexdigest()
