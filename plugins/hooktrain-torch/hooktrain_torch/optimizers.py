"""Optimizers of ``torch.optim``, with weight decay where it belongs, and several of them behind one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from hooktrain import (
    Complaint,
    HooktrainError,
    RecipeError,
    at_least,
    between,
    did_you_mean,
    field,
    one_of,
)
from hooktrain_torch.compat import full_shape
from hooktrain_torch.lookup import find_class
from hooktrain_torch.optimizer_groups import (
    GroupConfig,
    decayed,
    divide_parameters,
    group_complaints,
    hyperparameters,
    require_betas,
)

if TYPE_CHECKING:
    from torch.nn import Module, Parameter
    from torch.optim import Optimizer

__all__ = ["TYPES", "AdamConfig", "AdamWConfig", "AnyConfig", "MuonConfig", "SGDConfig", "make_optimizer"]


class _Grouped:
    """What the config classes here have in common."""

    @property
    def needs_matrices(self) -> bool:
        """Whether some weights are updated as matrices."""
        names = [self.name if isinstance(self, AnyConfig) else type(self).__name__.removesuffix("Config")]
        for group in self.groups:  # type: ignore[attr-defined]
            names += [group.type or "", group.name or ""]
        return any(name.rpartition(".")[2].lower() == "muon" for name in names)


@attrs.frozen(kw_only=True)
class AdamWConfig(_Grouped):
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019)."""

    lr: float = field(default=2e-5, validator=at_least(0), aliases=("learning_rate",))
    """Learning rate."""
    weight_decay: float = field(default=0.1, validator=at_least(0))
    """Decay of matrices; biases, norms and other vectors are not decayed."""
    betas: tuple[float, float] = field(default=(0.9, 0.999), validator=require_betas)
    """Decay rates of the running means of gradient and squared gradient."""
    eps: float = field(default=1e-8, validator=at_least(0))
    """Added to the denominator."""
    decay_vectors: bool = field(default=False)
    """Whether to decay biases, norms and other vectors as well."""
    fused: bool | None = field(default=None)
    """Whether one kernel updates all parameters; where it can when omitted."""
    groups: tuple[GroupConfig, ...] = field(factory=tuple)
    """Parameters with hyperparameters, or an optimizer, of their own."""


@attrs.frozen(kw_only=True)
class AdamConfig(AdamWConfig):
    """Adam with weight decay added to the gradient (Kingma & Ba, 2015)."""

    weight_decay: float = field(default=0.0, validator=at_least(0))
    """Decay of matrices; biases, norms and other vectors are not decayed."""


@attrs.frozen(kw_only=True)
class SGDConfig(_Grouped):
    """Stochastic gradient descent."""

    lr: float = field(default=1e-2, validator=at_least(0), aliases=("learning_rate",))
    """Learning rate."""
    momentum: float = field(default=0.0, validator=at_least(0))
    """Share of the last update that is kept."""
    weight_decay: float = field(default=0.0, validator=at_least(0))
    """Decay of matrices; biases, norms and other vectors are not decayed."""
    decay_vectors: bool = field(default=False)
    """Whether to decay biases, norms and other vectors as well."""
    fused: bool = field(default=False)
    """Whether one kernel updates all parameters."""
    groups: tuple[GroupConfig, ...] = field(factory=tuple)
    """Parameters with hyperparameters, or an optimizer, of their own."""


@attrs.frozen(kw_only=True)
class MuonConfig(_Grouped):
    """Momentum whose updates are orthogonalized (Jordan et al., 2024), for matrices only.

    Vectors, and usually embeddings and the head, are for groups of another type.
    """

    lr: float = field(default=2e-2, validator=at_least(0), aliases=("learning_rate",))
    """Learning rate."""
    weight_decay: float = field(default=0.1, validator=at_least(0))
    """Decay, separate from the gradient."""
    momentum: float = field(default=0.95, validator=between(0, 1))
    """Share of the running mean of the gradient that is kept."""
    nesterov: bool = field(default=True)
    """Whether the update looks one step ahead."""
    adjust_lr: str = field(default="original", validator=one_of("original", "match_rms_adamw"))
    """How the rate depends on a matrix's shape; with ``match_rms_adamw`` rates and decay of AdamW fit."""
    groups: tuple[GroupConfig, ...] = field(factory=tuple)
    """Parameters with hyperparameters, or an optimizer, of their own."""


@attrs.frozen(kw_only=True)
class AnyConfig(_Grouped):
    """Any optimizer class, by its name in ``torch.optim`` or its dotted path."""

    name: str = field()
    """Such as ``Adafactor``, or ``package.module.Class``."""
    lr: float = field(default=1e-3, validator=at_least(0), aliases=("learning_rate",))
    """Learning rate."""
    arguments: Mapping[str, Any] = field(factory=dict)
    """Further keyword arguments of the class."""
    groups: tuple[GroupConfig, ...] = field(factory=tuple)
    """Parameters with hyperparameters, or an optimizer, of their own."""


TYPES: Mapping[str, type] = {
    "adamw": AdamWConfig,
    "adam": AdamConfig,
    "sgd": SGDConfig,
    "muon": MuonConfig,
    "torch": AnyConfig,
}
"""Config classes of this module, by the name under which a recipe selects them."""


def make_optimizer(config: Any, model: Module) -> Optimizer:
    """Make the optimizer of a config, over the model's trainable parameters.

    Groups with a ``type`` are optimizers of their own behind the one that is returned. The parameters that no group
    matches come first, so that the learning rate in the log is theirs.

    Raises:
        HooktrainError: when nothing can be trained, or a class cannot be found or made.
        RecipeError: a group matches nothing, or parameters that its optimizer cannot update.
    """
    if complaints := list(group_complaints(config, TYPES)):
        raise RecipeError(complaints)
    rest, members = divide_parameters(model, config.groups)
    parts = [(config, _groups(config, rest, {}, "optimizer.type"))]
    for number, (group, parameters) in enumerate(zip(config.groups, members, strict=True)):
        own, marks, where = hyperparameters(group), {"match": group.match}, f"optimizer.groups[{number}].match"
        if group.type is None:
            own = {**own, **own.pop("arguments", {})}
            parts[0][1].extend(_groups(config, parameters, own | marks, where))
        else:
            other = TYPES[group.type](**own)
            parts.append((other, _groups(other, parameters, marks | {"type": group.type}, where)))
    made = [_make(each, groups) for each, groups in parts if groups]
    if len(made) == 1:
        return made[0]
    from hooktrain_torch.combined_optimizer import CombinedOptimizer

    return CombinedOptimizer(made)


def _groups(config: Any, parameters: Mapping[str, Parameter], own: Mapping[str, Any], where: str) -> list[Any]:
    """Return torch's parameter groups for parameters with some hyperparameters of their own."""
    if isinstance(config, MuonConfig):
        for name, parameter in parameters.items():
            if len(full_shape(parameter)) != 2:
                shape = tuple(full_shape(parameter))
                advice = f"have a group before this one match it, such as {{match: {_last(name)}, type: adamw}}"
                raise RecipeError(
                    [Complaint(where, f"muon updates matrices, and {name} has the shape {shape}; {advice}")]
                )
    if isinstance(config, (AnyConfig, MuonConfig)):
        return [{"params": [*parameters.values()], **own}] if parameters else []
    return decayed([*parameters.values()], config, own)


def _last(name: str) -> str:
    """Return the end of a parameter's name that others of its kind share."""
    return name if "." not in name else rf"{name.split('.')[-2]}\.{name.rsplit('.', maxsplit=1)[-1]}"


def _make(config: Any, groups: list[dict[str, Any]]) -> Optimizer:
    """Make one optimizer of torch over its groups."""
    import torch  # which a recipe is read without

    parameters = [parameter for group in groups for parameter in group["params"]]
    if isinstance(config, AnyConfig):
        return _any(config, groups)
    if isinstance(config, SGDConfig):
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=config.fused or None)
    if isinstance(config, MuonConfig):
        return torch.optim.Muon(
            groups,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            nesterov=config.nesterov,
            adjust_lr_fn=config.adjust_lr,
        )
    kind = torch.optim.Adam if isinstance(config, AdamConfig) else torch.optim.AdamW
    # one kernel for all parameters: on a GPU and on a CPU alike the quickest of torch's implementations
    can = all(parameter.is_floating_point() and not parameter.is_meta for parameter in parameters)
    fused = can if config.fused is None else config.fused
    return kind(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


def _any(config: AnyConfig, groups: list[dict[str, Any]]) -> Optimizer:
    from torch.optim import Optimizer

    kind = find_class(config.name, "torch.optim", "optimizer.name")
    if not (isinstance(kind, type) and issubclass(kind, Optimizer)):
        raise HooktrainError(
            f"optimizer.name: given '{config.name}', which is no torch optimizer; give a class that is one"
        )
    if inspect.signature(kind.step).parameters["closure"].default is inspect.Parameter.empty:
        raise HooktrainError(
            f"optimizer.name: {config.name} computes the loss several times a step, which a run here does once; choose"
            " another one"
        )
    try:
        made = kind(groups, lr=config.lr, **config.arguments)  # type: ignore[call-arg]
    except (TypeError, ValueError) as problem:
        raise HooktrainError(
            f"optimizer: {config.name} refuses its arguments ({problem}); correct optimizer.arguments"
        ) from problem
    _require_known(config, made)
    return made


def _require_known(config: AnyConfig, made: Optimizer) -> None:
    """Refuse hyperparameters of groups that an optimizer does not have, which torch would ignore."""
    known = {"params", "lr", "match", "type", *made.defaults}
    for group in made.param_groups:
        for name in group.keys() - known:
            hint = did_you_mean(name, made.defaults)
            raise HooktrainError(
                f"optimizer.groups: the group '{group.get('match')}' sets '{name}', which {config.name} does not"
                f" have{hint}; it has {', '.join(made.defaults)}"
            )
