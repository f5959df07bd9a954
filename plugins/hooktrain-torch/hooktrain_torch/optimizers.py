"""Optimizers of ``torch.optim``, with weight decay where it belongs, and several of them behind one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hooktrain import (
    Complaint,
    HooktrainError,
    RecipeError,
    did_you_mean,
)
from hooktrain_torch.compat import full_shape
from hooktrain_torch.lookup import find_class
from hooktrain_torch.optimizer_configs import TYPES, AdamConfig, AnyConfig, MuonConfig, SGDConfig
from hooktrain_torch.parameter_groups import decayed, divide_parameters, group_complaints, hyperparameters
from hooktrain_torch.small_states import SMALL_STATES, make_small_optimizer

if TYPE_CHECKING:
    from torch.nn import Module, Parameter
    from torch.optim import Optimizer

__all__ = ["make_optimizer"]


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

    if type(config) in SMALL_STATES.values():
        return make_small_optimizer(config, groups)
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
