"""Parameter groups: which parameters an optimizer updates with which hyperparameters; imported without torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from hooktrain import Complaint, HooktrainError, RecipeError, at_least, field
from hooktrain_torch.compat import full_shape

if TYPE_CHECKING:
    from torch.nn import Module, Parameter

__all__ = [
    "GroupConfig",
    "decayed",
    "divide_parameters",
    "group_complaints",
    "hyperparameters",
    "parameter_groups",
    "require_betas",
    "trainable",
]

_SELECTS = ("match", "type")


def require_betas(instance: Any, attribute: Any, value: tuple[float, float] | None) -> None:
    """Refuse decay rates of Adam that are not from 0 to below 1; a validator of attrs."""
    if value is not None and not all(0 <= beta < 1 for beta in value):
        raise ValueError(f"given {list(value)}, expected two numbers from 0 to below 1")


def _require_pattern(instance: Any, attribute: Any, value: str) -> None:
    try:
        re.compile(value)
    except re.error as problem:
        raise ValueError(f"given '{value}', which is no regular expression ({problem})") from None
    if not value:
        raise ValueError("given '', expected a regular expression that some names match")


@attrs.frozen(kw_only=True)
class GroupConfig:
    """Hyperparameters of the parameters whose names match, in place of the optimizer's own."""

    match: str = field(validator=_require_pattern)
    """Regular expression that is searched in the names of the parameters. A parameter is in the first group that
    matches; the optimizer's own settings are for all others."""
    type: str | None = field(default=None)
    """Another optimizer for this group: ``adamw``, ``adam``, ``sgd``, ``muon`` or ``torch``, with the defaults of that
    type for what the group does not set."""
    lr: float | None = field(default=None, validator=at_least(0), aliases=("learning_rate",))
    """Learning rate."""
    weight_decay: float | None = field(default=None, validator=at_least(0))
    """Decay of every parameter of the group, vectors included. When omitted, it is the optimizer's, for matrices
    only."""
    betas: tuple[float, float] | None = field(default=None, validator=require_betas)
    """Decay rates of Adam's running means."""
    eps: float | None = field(default=None, validator=at_least(0))
    """Added to the denominator."""
    momentum: float | None = field(default=None, validator=at_least(0))
    """Momentum of ``sgd`` or ``muon``."""
    name: str | None = field(default=None)
    """The class, with ``type: torch``."""
    arguments: Mapping[str, Any] = field(factory=dict)
    """Further keyword arguments of the class, with ``type: torch``."""


def hyperparameters(group: GroupConfig) -> dict[str, Any]:
    """Return what a group sets itself, by the names of the recipe."""
    values = {item.name: getattr(group, item.name) for item in attrs.fields(GroupConfig)}
    return {name: value for name, value in values.items() if name not in _SELECTS and value not in (None, {})}


def group_complaints(config: Any, types: Mapping[str, type]) -> Iterator[Complaint]:
    """Yield what is wrong with the groups of an optimizer's config, each with its path.

    Args:
        config: has ``groups``.
        types: config classes of the types that a group may have.
    """
    for number, group in enumerate(config.groups):
        where = f"optimizer.groups[{number}]"
        if group.type is not None and group.type not in types:
            expected = ", ".join(types) if types else "none, which only torch's own optimizers support"
            yield Complaint(f"{where}.type", f"given '{group.type}', expected {expected}")
            continue
        kind = type(config) if group.type is None else types[group.type]
        known = {item.name: item for item in attrs.fields(kind)}
        is_open = group.type is None and "arguments" in known  # what its class takes is found when it is made
        for name in hyperparameters(group):
            if (name not in known and not is_open) or (name == "name" and group.type is None):
                whose = "the optimizer of this recipe" if group.type is None else f"'{group.type}'"
                yield Complaint(f"{where}.{name}", f"{whose} has no such setting for a group; remove it")
        for name, item in known.items():
            if group.type is not None and item.default is attrs.NOTHING and name not in hyperparameters(group):
                yield Complaint(f"{where}.{name}", f"missing, and type: {group.type} has no default; add it")


def trainable(model: Module) -> dict[str, Parameter]:
    """Return the parameters that take gradients by name, tied ones once.

    Raises:
        HooktrainError: when there is none.
    """
    found = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not found:
        raise HooktrainError("optimizer: no parameter of the model takes gradients; unfreeze some, or add an adapter")
    return found


def divide_parameters(
    model: Module, groups: Sequence[GroupConfig]
) -> tuple[dict[str, Parameter], list[dict[str, Parameter]]]:
    """Put each trainable parameter into one group, the first that matches.

    Returns:
        The parameters that no group matches, and those of each group.

    Raises:
        HooktrainError: nothing can be trained.
        RecipeError: a group would be empty.
    """
    found = trainable(model)
    if not groups:
        return found, []
    patterns = [re.compile(group.match) for group in groups]
    names: dict[Parameter, list[str]] = {}  # tied weights have several
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    rest: dict[str, Parameter] = {}
    made: list[dict[str, Parameter]] = [{} for _ in groups]
    for name, parameter in found.items():
        matches = (n for n, pattern in enumerate(patterns) if any(map(pattern.search, names[parameter])))
        first = next(matches, None)
        (rest if first is None else made[first])[name] = parameter
    complaints = [
        Complaint(f"optimizer.groups[{number}].match", _why_empty(patterns[number], names))
        for number, members in enumerate(made)
        if not members
    ]
    if complaints:
        raise RecipeError(complaints)
    return rest, made


def _why_empty(pattern: re.Pattern[str], names: Mapping[Parameter, Sequence[str]]) -> str:
    given = f"given '{pattern.pattern}', which"
    matched = {name: parameter for parameter, each in names.items() for name in each if pattern.search(name)}
    if taken := [name for name, parameter in matched.items() if parameter.requires_grad]:
        return f"{given} matches {_some(taken)}, all in groups before it; put this group first, or remove it"
    if matched:
        return f"{given} matches only frozen parameters ({_some([*matched])}); remove this group, or train them"
    known = [each[0] for parameter, each in names.items() if parameter.requires_grad]
    return f"{given} matches no parameter, expected a part of names such as {_some(known)}; correct or remove it"


def _some(names: Sequence[str]) -> str:
    """Return the first names and the last one, which tell what the names of a model look like."""
    return ", ".join(names) if len(names) <= 3 else f"{names[0]}, {names[len(names) // 2]}, ..., {names[-1]}"


def parameter_groups(config: Any, model: Module) -> list[dict[str, Any]]:
    """Return the parameter groups of an optimizer whose groups have no ``type``.

    Args:
        config: has ``weight_decay``, ``decay_vectors`` and ``groups``.
        model: has the parameters.

    Raises:
        HooktrainError: nothing can be trained.
        RecipeError: a group would be empty.
    """
    rest, members = divide_parameters(model, config.groups)
    made = decayed([*rest.values()], config, {})
    for group, parameters in zip(config.groups, members, strict=True):
        made += decayed([*parameters.values()], config, {**hyperparameters(group), "match": group.match})
    return made


def decayed(parameters: Sequence[Parameter], config: Any, own: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return parameter groups of some parameters: matrices with decay, and vectors without.

    Args:
        parameters: of which there may be none.
        config: has ``weight_decay`` and ``decay_vectors``.
        own: entries of each group; one with a ``weight_decay`` of its own is not divided.
    """
    if "weight_decay" in own:
        made = [{"params": list(parameters), **own}]
    else:
        is_decayed = [len(full_shape(parameter)) >= 2 or config.decay_vectors for parameter in parameters]
        matrices = [parameter for parameter, decays in zip(parameters, is_decayed, strict=True) if decays]
        vectors = [parameter for parameter, decays in zip(parameters, is_decayed, strict=True) if not decays]
        made = [
            {"params": matrices, "weight_decay": config.weight_decay, **own},
            {"params": vectors, "weight_decay": 0.0, **own},
        ]
    return [group for group in made if group["params"]]
