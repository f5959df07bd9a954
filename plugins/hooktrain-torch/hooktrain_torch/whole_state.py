"""Weights and optimizer of a model that each rank holds whole, as checkpoints keep them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from hooktrain import Fragment, StoredTensors, TrainedState

__all__ = ["aliases", "group_names", "load_whole", "parameter_names", "require_groups", "whole_state"]


def whole_state(model: Module, optimizer: Optimizer) -> TrainedState:
    """Everything, for the one rank that saves it.

    Args:
        model: the bare model.
        optimizer: over parameters of ``model``.
    """
    weights, extra = _weights(model)
    names = parameter_names(model)
    state = optimizer.state_dict()
    groups = group_names(optimizer, names)
    numbers = dict(enumerate(name for group in groups for name in group))
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    tensors: list[Fragment] = []
    plain: dict[str, dict[str, Any]] = {}
    for number, entries in state["state"].items():
        name = numbers[number]
        for key, value in entries.items():
            if isinstance(value, Tensor) and value.shape == parameters[number].shape and key != "step":
                tensors.append(Fragment(f"{name}/{key}", tuple(value.shape), 0, value))
            else:
                plain.setdefault(name, {})[key] = value
    hyper = [{key: value for key, value in group.items() if key != "params"} for group in state["param_groups"]]
    rest = {"extra": extra, "groups": hyper, "names": groups, "state": plain}
    return TrainedState([Fragment(n, tuple(w.shape), 0, w) for n, w in weights.items()], tensors, rest)


def load_whole(
    model: Module,
    optimizer: Optimizer,
    stored: tuple[StoredTensors, StoredTensors],
    rest: Mapping[str, Any],
    left_out: Collection[str],
) -> None:
    """Take over a checkpoint.

    Raises:
        ValueError: when names or shapes are not those of this run.
        RuntimeError: likewise.
    """
    weights, optimized = stored
    other = aliases(model)
    expected = list(model.state_dict())
    there = {name: name if name in weights.names() else other.get(name, name) for name in expected}
    known = {*weights.names(), *rest["extra"]}
    odd = [*(set(known) - {*there, *there.values()}), *(n for n, s in there.items() if s not in known | set(left_out))]
    if odd:
        raise ValueError(f"missing or unexpected weights: {', '.join(sorted(odd)[:3])}{', ...' if odd[3:] else ''}")
    found = {
        name: rest["extra"][name] if name in rest["extra"] else weights.read(source).view(weights.shape(source))
        for name, source in there.items()
        if name in rest["extra"] or source in weights.names()
    }
    model.load_state_dict(found, strict=False)  # what is missing has been checked: frozen weights and aliases

    groups = group_names(optimizer, parameter_names(model))
    require_groups(groups, rest["names"])
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = {name: number for number, name in enumerate(name for group in groups for name in group)}
    # each parameter its own: one that counts steps for all of them would be counted up by all of them
    state: dict[int, dict[str, Any]] = {
        numbers[name]: {k: v.clone() if isinstance(v, Tensor) else v for k, v in values.items()}
        for name, values in rest["state"].items()
    }
    for full in optimized.names():
        name, _, key = full.rpartition("/")
        if name not in numbers:
            raise ValueError(f"the optimizer's {full} belongs to no parameter of this run")
        shape = optimized.shape(full)
        if tuple(parameters[numbers[name]].shape) != shape:
            raise ValueError(f"{full} has the shape {shape}, expected {tuple(parameters[numbers[name]].shape)}")
        state.setdefault(numbers[name], {})[key] = optimized.read(full).view(shape)
    at = 0
    param_groups = []
    for hyper, names in zip(rest["groups"], groups, strict=True):
        param_groups.append({**hyper, "params": list(range(at, at + len(names)))})
        at += len(names)
    optimizer.load_state_dict({"state": state, "param_groups": param_groups})


def parameter_names(model: Module) -> dict[int, str]:
    """The name of each parameter by its ``id``; the first one of those that are tied."""
    return {id(parameter): name for name, parameter in model.named_parameters()}


def aliases(model: Module) -> dict[str, str]:
    """Further names of tied weights, each with the one that checkpoints use."""
    first = parameter_names(model)
    every = model.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in every if first[id(parameter)] != name}


def group_names(optimizer: Optimizer, names: Mapping[int, str]) -> list[list[str]]:
    """The parameters of each group; one that is not the model's goes by its place."""
    return [
        [names.get(id(parameter), f"group {g}, {i}") for i, parameter in enumerate(group["params"])]
        for g, group in enumerate(optimizer.param_groups)
    ]


def require_groups(mine: Sequence[Sequence[str]], stored: Sequence[Sequence[str]]) -> None:
    """Refuse a checkpoint whose parameter groups are others.

    Raises:
        ValueError: naming a parameter that is not where it was.
    """
    if [list(group) for group in mine] == [list(group) for group in stored]:
        return
    here, there = ({name: g for g, group in enumerate(groups) for name in group} for groups in (mine, stored))
    odd = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
    named = f" ({', '.join(odd[:3])}{', ...' if odd[3:] else ''})" if odd else ""
    raise ValueError(
        f"the optimizer's {sum(map(len, stored))} parameters in {len(stored)} groups were others than the"
        f" {sum(map(len, mine))} in {len(mine)} groups of this run{named}"
    )


def _weights(model: Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of the model's state, tied ones once, and what else is in it."""
    other = aliases(model)
    state = {name: value for name, value in model.state_dict().items() if other.get(name, name) == name}
    return (
        {name: value for name, value in state.items() if isinstance(value, torch.Tensor)},
        {name: value for name, value in state.items() if not isinstance(value, torch.Tensor)},
    )
