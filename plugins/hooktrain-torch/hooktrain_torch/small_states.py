"""Optimizers whose states take a fraction of AdamW's memory, by torchao, bitsandbytes and torch.

The libraries are extras: they are imported when a recipe names one of their optimizers. AdamW in 8 and 4 bits is
torchao's, the only one of the two with 4 bits; Lion in 8 bits and paged states are bitsandbytes'. Both run on
processors, and keep vectors, and matrices of fewer than 4,096 elements, in 32 bits.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from hooktrain import Complaint, ConfigDefaults, at_least, field, import_quietly, member
from hooktrain_torch.optimizer_groups import GroupConfig, group_complaints, parameter_groups, require_betas
from hooktrain_torch.optimizers import AdamWConfig

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.optim import Optimizer

    from hooktrain import Recipe

__all__ = [
    "SMALL_STATES",
    "AdafactorConfig",
    "AdamW4bitConfig",
    "AdamW8bitConfig",
    "Lion8bitConfig",
    "PagedAdamW8bitConfig",
    "PagedAdamWConfig",
    "PagedLion8bitConfig",
    "check",
    "make_small_optimizer",
]


@attrs.frozen(kw_only=True)
class AdamW8bitConfig(AdamWConfig):
    """AdamW with states of 8 bits, a quarter of AdamW's (Dettmers et al., 2022); needs torchao."""

    plain_states: ClassVar[bool] = False


@attrs.frozen(kw_only=True)
class AdamW4bitConfig(AdamWConfig):
    """AdamW with states of 4 bits, an eighth of AdamW's (Li et al., 2023); needs torchao."""

    plain_states: ClassVar[bool] = False


@attrs.frozen(kw_only=True)
class PagedAdamWConfig(AdamWConfig):
    """AdamW with states that move to the host's memory where a GPU has too little; needs bitsandbytes and a GPU."""

    plain_states: ClassVar[bool] = False


@attrs.frozen(kw_only=True)
class PagedAdamW8bitConfig(PagedAdamWConfig):
    """The same with states of 8 bits."""


@attrs.frozen(kw_only=True)
class Lion8bitConfig:
    """Lion with its one state in 8 bits, an eighth of AdamW's (Chen et al., 2023); needs bitsandbytes."""

    plain_states: ClassVar[bool] = False

    lr: float = field(default=5e-6, validator=at_least(0), aliases=("learning_rate",))
    """Learning rate; a third to a tenth of AdamW's."""
    weight_decay: float = field(default=0.5, validator=at_least(0))
    """Decay of matrices, three to ten times AdamW's; biases, norms and other vectors are not decayed."""
    betas: tuple[float, float] = field(default=(0.9, 0.99), validator=require_betas)
    """Share of the mean in the update, and decay rate of the mean."""
    decay_vectors: bool = field(default=False)
    """Whether to decay biases, norms and other vectors as well."""
    groups: tuple[GroupConfig, ...] = field(factory=tuple)
    """Parameters with hyperparameters of their own."""


@attrs.frozen(kw_only=True)
class PagedLion8bitConfig(Lion8bitConfig):
    """The same with states that move to the host's memory where a GPU has too little; needs a GPU."""


@attrs.frozen(kw_only=True)
class AdafactorConfig:
    """Adafactor, which keeps a sum for each row and each column of a matrix (Shazeer & Stern, 2018); torch's own."""

    plain_states: ClassVar[bool] = False

    lr: float = field(default=1e-2, validator=at_least(0), aliases=("learning_rate",))
    """Learning rate, as a share of each weight's root mean square."""
    weight_decay: float = field(default=0.0, validator=at_least(0))
    """Decay of matrices; biases, norms and other vectors are not decayed."""
    beta2_decay: float = field(default=-0.8)
    """Exponent of the step in the decay rate of the squared gradients' mean."""
    clip_threshold: float = field(default=1.0, validator=at_least(1))
    """Largest root mean square of an update before the learning rate."""
    decay_vectors: bool = field(default=False)
    """Whether to decay biases, norms and other vectors as well."""
    groups: tuple[GroupConfig, ...] = field(factory=tuple)
    """Parameters with hyperparameters of their own."""


SMALL_STATES: Mapping[str, type] = {
    "adamw_8bit": AdamW8bitConfig,
    "adamw_4bit": AdamW4bitConfig,
    "lion_8bit": Lion8bitConfig,
    "adafactor": AdafactorConfig,
    "paged_adamw": PagedAdamWConfig,
    "paged_adamw_8bit": PagedAdamW8bitConfig,
    "paged_lion_8bit": PagedLion8bitConfig,
}
"""The config classes by the names that recipes have for them."""
_NAMES = {kind: name for name, kind in SMALL_STATES.items()}
_PAGED = (PagedAdamWConfig, PagedLion8bitConfig)


def check(recipe: Recipe) -> Iterator[Complaint]:
    """Yield why an optimizer of this module cannot be used: packages, devices and strategies that it needs."""
    config = recipe.optimizer
    name = _NAMES.get(type(config))
    if name is None:
        return
    yield from group_complaints(config, {})
    if isinstance(config, AdamWConfig) and config.fused is not None:
        yield Complaint("optimizer.fused", f"given {config.fused}, and {name} has one kernel only; remove it")
    package = _package(config)
    if package and importlib.util.find_spec(package) is None:
        yield Complaint(
            "optimizer.type",
            f"given {name}, which needs the package {package}, and that is not installed; run `pip install {package}`,"
            " or write adamw",
            of_machine=True,
        )
    if isinstance(config, _PAGED) and not _has_gpu(str(member(recipe.strategy, ConfigDefaults, "device"))):
        yield Complaint(
            "optimizer.type",
            f"given {name}, whose states are paged from a GPU, and the run has none; write"
            f" {name.removeprefix('paged_')}, or strategy.device: cuda to plan for a machine with one",
        )
    if member(recipe.strategy, ConfigDefaults, "shards_weights"):
        yield Complaint(
            "optimizer.type",
            f"given {name}, whose states are not divided like the weights that the strategy shards over ranks; write"
            " adamw, whose states are, or choose a strategy that keeps complete weights on each rank, such as {type:"
            " torch, data_parallel: ddp}",
        )


def make_small_optimizer(config: Any, model: Module) -> Optimizer:
    """Make the optimizer of a config of this module, over the model's trainable parameters.

    Raises:
        HooktrainError: when nothing can be trained.
    """
    from hooktrain_torch import quantized_adamw
    from hooktrain_torch.compat import is_fake
    from hooktrain_torch.planned_states import PlannedStates, in_blocks, in_full, of_rows_and_columns

    groups = parameter_groups(config, model)
    planned = is_fake(groups[0]["params"][0])
    if isinstance(config, AdafactorConfig):
        if planned:
            return PlannedStates(groups, of_rows_and_columns)
        import torch

        return torch.optim.Adafactor(
            groups, lr=config.lr, beta2_decay=config.beta2_decay, d=config.clip_threshold, foreach=False
        )
    if isinstance(config, (AdamW8bitConfig, AdamW4bitConfig)):
        bits = 8 if isinstance(config, AdamW8bitConfig) else 4
        if planned:
            return PlannedStates(groups, in_blocks(bits, states=2, block=256 if bits == 8 else 128, ragged=False))
        return quantized_adamw.make_adamw(bits, groups, lr=config.lr, betas=config.betas, eps=config.eps)
    lion = isinstance(config, Lion8bitConfig)
    if planned:
        exact = type(config) is PagedAdamWConfig
        return PlannedStates(groups, in_full(2) if exact else in_blocks(8, 1 if lion else 2, 256, ragged=True))
    kinds: Any = import_quietly("bitsandbytes.optim")
    paged = isinstance(config, _PAGED)
    made: Optimizer
    if lion:
        made = kinds.Lion8bit(groups, lr=config.lr, betas=config.betas, is_paged=paged)
    else:
        kind: Callable[..., Optimizer] = (
            kinds.PagedAdamW8bit if isinstance(config, PagedAdamW8bitConfig) else kinds.PagedAdamW32bit
        )
        made = kind(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    return made


def _package(config: Any) -> str:
    """Return the package that an optimizer needs; empty where torch has it."""
    if isinstance(config, AdafactorConfig):
        return ""
    return "torchao" if isinstance(config, (AdamW8bitConfig, AdamW4bitConfig)) else "bitsandbytes"


def _has_gpu(device: str) -> bool:
    if device != "auto":
        return device.startswith("cuda")
    import torch  # which only a recipe with paged states needs here

    return torch.cuda.is_available()
