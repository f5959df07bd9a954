"""State of a model and its optimizer as checkpoints keep it: complete on each rank, or in shards of tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from hooktrain import Shard, StoredTensors, TrainedState
from hooktrain_torch.compat import wrapped_tensors
from hooktrain_torch.optimizer_layout import key_of, read_rows, restored, saved, shard_of
from hooktrain_torch.sharded import is_sharded

__all__ = [
    "aliases",
    "group_names",
    "load_model",
    "load_trained_state",
    "parameter_names",
    "require_groups",
    "shards_of",
    "trained_state",
]

_AT_ONCE = 1 << 26
"""Bytes of weights that are read before they are loaded."""


def trained_state(model: Module, optimizer: Optimizer, *, is_main: bool = True) -> TrainedState:
    """Return what this rank saves: its shards of sharded tensors, and on the main rank all other tensors too.

    Args:
        model: the bare model.
        optimizer: over parameters of ``model``.
        is_main: whether this rank saves what is equal on all ranks.
    """
    weights, extra = _weights(model)
    names = parameter_names(model)
    state = optimizer.state_dict()
    groups = group_names(optimizer, names)
    numbers = dict(enumerate(name for group in groups for name in group))
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    tensors: list[Shard] = []
    plain: dict[str, dict[str, Any]] = {}
    layouts: dict[str, dict[str, Any]] = {}
    dtypes: dict[str, dict[str, torch.dtype]] = {}  # of what torch would otherwise cast to the parameter's
    others = {key: value for key, value in state["state"].items() if key not in numbers}  # of no parameter
    for number, name in numbers.items():
        for key, value in state["state"].get(number, {}).items():
            found = None if key == "step" else saved(f"{name}/{key}", value, parameters[number])
            if isinstance(value, Tensor) and key != "step" and value.dtype != parameters[number].dtype:
                dtypes.setdefault(name, {})[key] = value.dtype
            if found is None:
                plain.setdefault(name, {})[key] = value
                continue
            shard, layout = found
            tensors += [shard] if shard is not None else []
            if layout:
                layouts.setdefault(name, {})[key] = layout
    hyper = [{key: value for key, value in group.items() if key != "params"} for group in state["param_groups"]]
    rest = {"extra": extra, "groups": hyper, "names": groups, "state": plain}
    rest |= {"layouts": layouts, "dtypes": dtypes, "others": others}
    model_tensors = [shard_of(name, value) for name, value in weights.items()]
    if not is_main:
        sharded = {name for name, value in weights.items() if is_sharded(value)}
        model_tensors = [shard for shard in model_tensors if shard.name in sharded]
        tensors = [shard for shard in tensors if shard.name.rpartition("/")[0] in sharded]
    return TrainedState(model_tensors, tensors, rest)


def load_model(model: Module, weights: StoredTensors, extra: Mapping[str, Any], left_out: Collection[str]) -> None:
    """Load a checkpoint's weights, a part of them at a time.

    Args:
        model: the bare model.
        weights: the tensors of the checkpoint.
        extra: everything else in the model's state.
        left_out: names of frozen weights that were not stored.

    Raises:
        ValueError: when names or shapes are not those of this model.
        RuntimeError: likewise.
    """
    other = aliases(model)
    live = _in_parts(model.state_dict())
    expected = list(live)
    there = {name: name if name in weights.names() else other.get(name, name) for name in expected}
    known = {*weights.names(), *extra}
    odd = [*(set(known) - {*there, *there.values()}), *(n for n, s in there.items() if s not in known | set(left_out))]
    if odd:
        raise ValueError(f"missing or unexpected weights: {', '.join(sorted(odd)[:3])}{', ...' if odd[3:] else ''}")
    plain = {name for name, _ in chain(model.named_parameters(remove_duplicate=False), model.named_buffers())}
    apart = plain >= set(live)  # what a library has packed is one weight of several tensors
    found: dict[str, Any] = {}
    size = 0
    for name, source in there.items():
        if name in extra or source in weights.names():
            found[name] = extra[name] if name in extra else read_rows(weights, source, live[name])
            size += found[name].nbytes if isinstance(found[name], Tensor) else 0
        if apart and size >= _AT_ONCE:
            model.load_state_dict(found, strict=False)
            found, size = {}, 0
    model.load_state_dict(found, strict=False)  # what is missing has been checked: frozen weights and aliases


def load_trained_state(
    model: Module,
    optimizer: Optimizer,
    stored: tuple[StoredTensors, StoredTensors],
    rest: Mapping[str, Any],
    left_out: Collection[str],
) -> None:
    """Load a checkpoint into a model and its optimizer.

    Raises:
        ValueError: when names or shapes are not those of this run.
        RuntimeError: likewise.
    """
    weights, optimized = stored
    load_model(model, weights, rest["extra"], left_out)

    groups = group_names(optimizer, parameter_names(model))
    require_groups(groups, rest["names"])
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = {name: number for number, name in enumerate(name for group in groups for name in group)}
    for name, values in rest["state"].items():
        if not isinstance(values.get("step", 0), (Tensor, int, float)):
            raise ValueError(f"the optimizer's step of {name} is a {type(values['step']).__name__}, expected a number")
    # a copy for each parameter: a step count shared by all would be incremented by each of them
    state: dict[int, dict[str, Any]] = {
        numbers[name]: {k: v.clone() if isinstance(v, Tensor) else v for k, v in values.items()}
        for name, values in rest["state"].items()
    }
    layouts: Mapping[str, Mapping[str, Any]] = rest.get("layouts", {})
    for name, number in numbers.items():
        _require_small(name, state.get(number, {}), parameters[number])
    for full in optimized.names():
        name, _, key = full.rpartition("/")
        key = key_of(key, layouts.get(name, {}))
        if name not in numbers:
            raise ValueError(f"the optimizer's {full} belongs to no parameter of this run")
        parameter, layout = parameters[numbers[name]], layouts.get(name, {}).get(key, {})
        if layout:
            if key not in state.setdefault(numbers[name], {}):
                state[numbers[name]][key] = restored(optimized, f"{name}/{key}", layout, parameter)
            continue
        shape = optimized.shape(full)
        if tuple(parameter.shape) != shape:
            raise ValueError(f"{full} has the shape {shape}, expected {tuple(parameter.shape)}")
        state.setdefault(numbers[name], {})[key] = read_rows(optimized, full, parameter)
    at = 0
    param_groups = []
    for hyper, names in zip(rest["groups"], groups, strict=True):
        param_groups.append({**hyper, "params": list(range(at, at + len(names)))})
        at += len(names)
    optimizer.load_state_dict({"state": {**state, **rest.get("others", {})}, "param_groups": param_groups})
    for name, keys in rest.get("dtypes", {}).items():
        for key, dtype in keys.items():
            parameter = parameters[numbers[name]]
            if key in optimizer.state[parameter]:  # an optimizer may keep it in another form
                optimizer.state[parameter][key] = state[numbers[name]][key].to(parameter.device, dtype)


def _require_small(name: str, values: Mapping[str, Any], parameter: Tensor) -> None:
    """Refuse tensors of an optimizer whose parameters were not sharded, where it is not known how to shard them.

    Raises:
        ValueError: naming one.
    """
    for key, value in values.items():
        if is_sharded(parameter) and isinstance(value, Tensor) and value.numel() > 1:
            raise ValueError(
                f"the optimizer's {name}/{key} has the shape {tuple(value.shape)} and was saved without shards, and how"
                " to shard it is not known; resume without data_parallel: fsdp2"
            )


def parameter_names(model: Module) -> dict[int, str]:
    """Return the name of each parameter by its ``id``; the first name of tied ones."""
    return {id(parameter): name for name, parameter in model.named_parameters()}


def aliases(model: Module) -> dict[str, str]:
    """Return the further names of tied weights, each with the name that checkpoints use."""
    first = parameter_names(model)
    every = model.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in every if first[id(parameter)] != name}


def group_names(optimizer: Optimizer, names: Mapping[int, str]) -> list[list[str]]:
    """Return the parameter names of each group; a parameter that is not the model's is named by its position."""
    return [
        [names.get(id(parameter), f"group {g}, {i}") for i, parameter in enumerate(group["params"])]
        for g, group in enumerate(optimizer.param_groups)
    ]


def require_groups(mine: Sequence[Sequence[str]], stored: Sequence[Sequence[str]]) -> None:
    """Refuse a checkpoint with other parameter groups.

    Raises:
        ValueError: naming a parameter that is in another group.
    """
    if [list(group) for group in mine] == [list(group) for group in stored]:
        return
    here, there = ({name: g for g, group in enumerate(groups) for name in group} for groups in (mine, stored))
    odd = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
    named = f" ({', '.join(odd[:3])}{', ...' if odd[3:] else ''})" if odd else ""
    raise ValueError(
        f"the optimizer's {sum(map(len, stored))} parameters in {len(stored)} groups are not the"
        f" {sum(map(len, mine))} parameters in {len(mine)} groups of this run{named}"
    )


def shards_of(model: Module) -> list[Shard]:
    """Return a complete model's weights and buffers, tied ones once."""
    return [shard_of(name, value) for name, value in _weights(model)[0].items()]


def _weights(model: Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of the model's state, tied ones once, and everything else in it."""
    other = aliases(model)
    whole = {name: value for name, value in model.state_dict().items() if other.get(name, name) == name}
    state = _in_parts(whole)
    return (
        {name: value for name, value in state.items() if isinstance(value, torch.Tensor)},
        {name: value for name, value in state.items() if not isinstance(value, torch.Tensor)},
    )


def _in_parts(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's state with the tensors inside each quantized weight of torchao's, under the weight's name."""
    made: dict[str, Any] = {}
    for name, value in state.items():
        parts = wrapped_tensors(value)
        made.update({f"{name}.{part}": tensor for part, tensor in parts.items()} if parts else {name: value})
    return made
