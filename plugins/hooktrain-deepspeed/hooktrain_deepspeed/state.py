"""State of a ZeRO engine, as shards of the model's own tensors.

It is the float32 copy that the optimizer updates, from which the weights that the model computes with follow. Stages 1
and 2 flatten each parameter group into one vector and shard that; stage 3 shards each parameter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from hooktrain_torch import aliases, full_shape, require_groups
from torch import Tensor
from torch.nn import Module, Parameter

from hooktrain import CheckpointError, Shard, StoredTensors, TrainedState
from hooktrain_deepspeed.compat import address_of, is_partitioned, partition_rank, refresh_half_weights

__all__ = ["ZeroState"]


class _Place(NamedTuple):
    """Location of this rank's shard of a parameter.

    Attributes:
        name: the parameter's.
        shape: the full parameter's.
        start: the shard's first element in the flattened parameter.
        length: its elements.
        flat: the float32 vector that the optimizer updates.
        offset: the shard's first element in ``flat``.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    length: int
    flat: Parameter
    offset: int


class ZeroState:
    """Reads and writes the state of a ZeRO optimizer.

    Args:
        engine: DeepSpeed's.
        model: the bare model.
        groups: names of the parameters in each of the optimizer's groups.
        is_main: whether this rank saves what is equal on all ranks.
    """

    def __init__(self, engine: Any, model: Module, groups: Sequence[Sequence[str]], is_main: bool) -> None:
        self._engine, self._model, self._groups, self._is_main = engine, model, groups, is_main
        self._zero = engine.optimizer
        self._base = self._zero.optimizer
        self._shards_weights: bool = engine.zero_optimization_partition_weights()

    # -------------------------------------------------------------------------------------------------- saving

    def trained(self) -> TrainedState:
        """Return this rank's shards."""
        model, optimizer = [], []
        for place in self._places():
            model.append(self._cut(place, place.name, place.flat))
            for key, value in self._base.state.get(place.flat, {}).items():
                if _is_like(value, place.flat):
                    optimizer.append(self._cut(place, f"{place.name}/{key}", value))
        model.extend(self._others())
        hyper = [{k: v for k, v in group.items() if k != "params"} for group in self._base.param_groups]
        rest = {"extra": {}, "groups": hyper, "names": [list(names) for names in self._groups], "state": self._plain()}
        return TrainedState(model, optimizer, rest)

    def _cut(self, place: _Place, name: str, flat: Tensor) -> Shard:
        return Shard(name, place.shape, place.start, flat.detach().narrow(0, place.offset, place.length))

    def _others(self) -> Iterator[Shard]:
        """Yield frozen weights and buffers."""
        trained = {name for names in self._groups for name in names}
        parameter: Any
        for name, parameter in self._model.named_parameters():
            if name in trained:
                continue
            if is_partitioned(parameter):
                count = parameter.ds_tensor.numel()
                start = min(count * partition_rank(self._zero, parameter), parameter.ds_numel)
                stop = min(start + count, parameter.ds_numel)
                yield Shard(name, tuple(parameter.ds_shape), start, parameter.ds_tensor.data[: stop - start])
            elif self._is_main:
                yield Shard(name, tuple(parameter.shape), 0, parameter)
        if self._is_main:
            kept = self._model.state_dict().keys()
            for name, buffer in self._model.named_buffers():
                if name in kept:
                    yield Shard(name, tuple(buffer.shape), 0, buffer)

    def _plain(self) -> dict[str, dict[str, Any]]:
        """Return what the optimizer keeps of parameters besides tensors of their shape, such as a count of steps.

        It is equal on all ranks, but a rank may have no shard of a parameter, so it is read from the parameter's group.
        """
        made: dict[str, dict[str, Any]] = {}
        for number, flats in self._flats().items():
            found: dict[str, Any] = {}
            for flat in flats:
                found = {k: v for k, v in self._base.state.get(flat, {}).items() if not _is_like(v, flat)} or found
            odd = _odd_in(found)
            if odd:
                raise CheckpointError(
                    f"optimizer: its state '{odd}' has the shape {tuple(found[odd].shape)}, expected the shape"
                    f" {tuple(flats[0].shape)} of what ZeRO has it update; choose zero_stage: 0, the strategy torch, or"
                    " another optimizer"
                )
            if found:
                made.update((name, dict(found)) for name in self._groups[number])
        return made

    # ------------------------------------------------------------------------------------------------- loading

    def load(
        self, stored: tuple[StoredTensors, StoredTensors], rest: Mapping[str, Any], left_out: Collection[str]
    ) -> None:
        """Load a checkpoint.

        Raises:
            ValueError: when names or shapes are not those of this run.
        """
        weights, optimized = stored
        self._require(weights, rest, left_out)
        if self._shards_weights:
            self._zero.checkpoint_event_prologue()
        keys = {full.rpartition("/")[2] for full in optimized.names()}
        for number, flats in self._flats().items():
            names = self._groups[number]
            plain: Mapping[str, Any] = next((rest["state"][name] for name in names if name in rest["state"]), {})
            for flat in flats:
                state = {key: value.clone() if isinstance(value, Tensor) else value for key, value in plain.items()}
                state |= {key: torch.zeros_like(flat) for key in keys}
                if state:
                    self._base.state[flat] = state
        for place in self._places():
            stop = place.start + place.length
            with torch.no_grad():
                target = place.flat.narrow(0, place.offset, place.length)
                target.copy_(weights.read(place.name, place.start, stop))
                for key in keys:
                    if f"{place.name}/{key}" in optimized.names():
                        target = self._base.state[place.flat][key].narrow(0, place.offset, place.length)
                        target.copy_(optimized.read(f"{place.name}/{key}", place.start, stop))
        for shard in self._others_to_load():
            if shard.name in weights.names():
                with torch.no_grad():
                    values = weights.read(shard.name, shard.start, shard.start + shard.values.numel())
                    shard.values.copy_(values.view(shard.values.shape))
        for group, hyper in zip(self._base.param_groups, rest["groups"], strict=True):
            group.update(hyper)
        self._refresh()

    def _require(self, weights: StoredTensors, rest: Mapping[str, Any], left_out: Collection[str]) -> None:
        require_groups(self._groups, rest["names"])
        unlike = [(f"{name}/{_odd_in(values)}", "shape") for name, values in rest["state"].items() if _odd_in(values)]
        for part, what in (("layouts", "layout"), ("dtypes", "type")):
            unlike += [(f"{name}/{key}", what) for name, keys in rest.get(part, {}).items() for key in keys]
        for name, what in unlike:
            raise ValueError(
                f"the optimizer's {name} has another {what} than its weight, and ZeRO divides both alike; resume with"
                " zero_stage: 0, or with the strategy torch"
            )
        expected = {name: full_shape(parameter) for name, parameter in self._model.named_parameters()}
        buffers = {name: tuple(buffer.shape) for name, buffer in self._model.named_buffers()}
        kept = self._model.state_dict().keys()
        expected |= {name: shape for name, shape in buffers.items() if name in kept}
        odd = set(weights.names()) - set(expected) - set(aliases(self._model))
        odd |= set(expected) - set(weights.names()) - set(left_out)
        if odd:
            raise ValueError(f"missing or unexpected weights: {', '.join(sorted(odd)[:3])}")
        for name, shape in expected.items():
            if name in weights.names() and weights.shape(name) != shape:
                raise ValueError(f"{name} has the shape {weights.shape(name)}, expected {shape}")

    def _others_to_load(self) -> Iterator[Shard]:
        """Yield the same as :meth:`_others`, on every rank also what is equal on all of them."""
        main, self._is_main = self._is_main, True
        try:
            yield from list(self._others())
        finally:
            self._is_main = main

    @torch.no_grad()
    def _refresh(self) -> None:
        """Set the weights that the model computes with from the float32 copy."""
        zero = self._zero
        if not self._shards_weights:
            refresh_half_weights(zero)
            return
        for half, full in zip(zero.fp16_partitioned_groups_flat, zero.fp32_partitioned_groups_flat, strict=True):
            if half is not None and full.numel():
                half.data.copy_(full.data)
        for number, flat in enumerate(zero.fp16_partitioned_groups_flat):
            parts = zero.fp16_partitioned_groups[number]
            for part, made in zip(parts, zero.unflatten(flat, parts), strict=True):
                part.data = made.data
        zero.checkpoint_event_epilogue()

    # ------------------------------------------------------------------------------------------------- places

    def _places(self) -> Iterator[_Place]:
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}
        zero = self._zero
        if self._shards_weights:
            for sub, parameters in enumerate(zero.fp16_groups):
                flat = zero.fp32_partitioned_groups_flat[sub]
                for parameter in parameters:
                    _, offset, count = zero.grad_position[zero.get_param_id(parameter)]
                    start = min(count * partition_rank(zero, parameter), parameter.ds_numel)
                    count = min(count, parameter.ds_numel - start)  # the last one's end is padding
                    shape = tuple(parameter.ds_shape)
                    yield _Place(names[id(parameter)], shape, start, count, flat, offset)
            return
        for number, parameters in enumerate(zero.bit16_groups):
            flat = zero.single_partition_of_fp32_groups[number]
            for parameter in parameters:
                address = address_of(parameter)
                if address is not None:
                    start, count, offset = address
                    yield _Place(names[id(parameter)], tuple(parameter.shape), start, count, flat, offset)

    def _sub_groups(self) -> dict[int, int]:
        """Return the parameter group of each of stage 3's sub-groups."""
        home = {name: number for number, names in enumerate(self._groups) for name in names}
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}
        return {sub: home[names[id(group[0])]] for sub, group in enumerate(self._zero.fp16_groups)}

    def _flats(self) -> dict[int, list[Parameter]]:
        """Return the vectors that the optimizer updates, by parameter group."""
        if not self._shards_weights:
            return {number: [flat] for number, flat in enumerate(self._zero.single_partition_of_fp32_groups)}
        made: dict[int, list[Parameter]] = {}
        for sub, number in self._sub_groups().items():
            made.setdefault(number, []).append(self._zero.fp32_partitioned_groups_flat[sub])
        return made


def _odd_in(values: Mapping[str, Any]) -> str:
    """Return the key of a tensor of several numbers, which cannot be equal for all parameters of a group."""
    return next((key for key, value in values.items() if isinstance(value, Tensor) and value.numel() > 1), "")


def _is_like(value: Any, flat: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == flat.shape
