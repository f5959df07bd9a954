"""Weights and optimizer of a model as checkpoints keep them, each rank holding it whole or rows of its tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from hooktrain import Shard, StoredTensors, TrainedState
from hooktrain_torch.spread import is_spread

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["aliases", "group_names", "load_whole", "parameter_names", "require_groups", "whole_state"]


def whole_state(model: Module, optimizer: Optimizer, *, is_main: bool = True) -> TrainedState:
    """What this rank saves: of tensors that are spread over ranks its rows, and on the main rank all others.

    Args:
        model: the bare model.
        optimizer: over parameters of ``model``.
        is_main: whether this rank gives what all ranks hold alike.
    """
    weights, extra = _weights(model)
    names = parameter_names(model)
    state = optimizer.state_dict()
    groups = group_names(optimizer, names)
    numbers = dict(enumerate(name for group in groups for name in group))
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    tensors: list[Shard] = []
    plain: dict[str, dict[str, Any]] = {}
    for number, entries in state["state"].items():
        name = numbers[number]
        for key, value in entries.items():
            if isinstance(value, Tensor) and value.shape == parameters[number].shape and key != "step":
                tensors.append(_fragment(f"{name}/{key}", value))
            else:
                plain.setdefault(name, {})[key] = value
    hyper = [{key: value for key, value in group.items() if key != "params"} for group in state["param_groups"]]
    rest = {"extra": extra, "groups": hyper, "names": groups, "state": plain}
    model_tensors = [_fragment(name, value) for name, value in weights.items()]
    if not is_main:
        spread = {name for name, value in weights.items() if is_spread(value)}
        model_tensors = [fragment for fragment in model_tensors if fragment.name in spread]
        tensors = [fragment for fragment in tensors if fragment.name.rpartition("/")[0] in spread]
    return TrainedState(model_tensors, tensors, rest)


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
    live = model.state_dict()
    found = {
        name: rest["extra"][name] if name in rest["extra"] else _read(weights, source, live[name])
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
        state.setdefault(numbers[name], {})[key] = _read(optimized, full, parameters[numbers[name]])
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


def rows_here(tensor: DTensor) -> tuple[int, int]:
    """The first row of a tensor that this rank holds, and the one after its last: rows are dealt out evenly."""
    rows, ranks = tensor.shape[0], tensor.device_mesh.size()
    each = -(-rows // ranks)
    start = min(tensor.device_mesh.get_local_rank() * each, rows)
    return start, min(start + each, rows)


def _fragment(name: str, tensor: Tensor) -> Shard:
    if not is_spread(tensor):
        return Shard(name, tuple(tensor.shape), 0, tensor)
    start, _ = rows_here(tensor)
    return Shard(name, tuple(tensor.shape), start * tensor.shape[1:].numel(), tensor.to_local())


def _read(stored: StoredTensors, name: str, like: Tensor) -> Tensor:
    """A stored tensor, or this rank's rows of it where ``like`` is spread over ranks."""
    shape = stored.shape(name)
    if not is_spread(like):
        return stored.read(name).view(shape)
    if shape != tuple(like.shape):
        raise ValueError(f"{name} has the shape {shape}, expected {tuple(like.shape)}")
    (start, stop), row = rows_here(like), like.shape[1:].numel()
    local = stored.read(name, start * row, stop * row).view(stop - start, *shape[1:])
    return type(like).from_local(
        local.to(like.device),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def _weights(model: Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of the model's state, tied ones once, and what else is in it."""
    other = aliases(model)
    state = {name: value for name, value in model.state_dict().items() if other.get(name, name) == name}
    return (
        {name: value for name, value in state.items() if isinstance(value, torch.Tensor)},
        {name: value for name, value in state.items() if not isinstance(value, torch.Tensor)},
    )
