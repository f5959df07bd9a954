"""Frozen weights, which a checkpoint refers to instead of holding them: building the model gives them back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Module

__all__ = ["FrozenWeights", "checksum"]

_CHUNK = 1 << 20
"""Words of eight bytes at a time."""
_MIX = 0x5851F42D4C957F2D
"""An odd factor, so that chunks cannot be exchanged unnoticed."""


class FrozenWeights:
    """Remembers what a model's frozen weights are when it has just been built.

    A weight that was frozen later, or that something has written to although it is frozen, is not among
    :meth:`unchanged`, so that nothing which building the model would not give back is left out of a checkpoint.

    Args:
        model: as it was built, before anything is loaded into it.
    """

    def __init__(self, model: Module) -> None:
        self._built = dict(_checksums(model, None))

    def unchanged(self, model: Module) -> dict[str, str]:
        """Names and checksums of the weights that are frozen and still as they were built."""
        now = _checksums(model, set(self._built)) if self._built else ()
        return {name: found for name, found in now if found == self._built[name]}

    def different(self, model: Module, expected: Mapping[str, str]) -> list[str]:
        """Names in ``expected`` that the model, as it was built, lacks or has with another checksum."""
        unknown = set(expected) - set(self._built)  # frozen in the run that saved, and trained in this one
        built = {**self._built, **(dict(_checksums(model, unknown, frozen=False)) if unknown else {})}
        return [name for name, found in expected.items() if built.get(name) != found]


def checksum(tensor: Tensor) -> str:
    """Text that is equal for two tensors of equal type, shape and bits, and otherwise almost surely not.

    Integer arithmetic on the bits, so that it does not depend on device or threads; one pass over the memory.
    """
    return _text(tensor, int(_sum(tensor)))


def _checksums(model: Module, names: set[str] | None, frozen: bool = True) -> Iterator[tuple[str, str]]:
    """Names and checksums of parameters, the device being waited for once."""
    chosen: list[tuple[str, Tensor]] = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if (names is None or name in names) and not (frozen and parameter.requires_grad) and _is_whole(parameter):
            chosen.append((name, parameter))
    once = {id(tensor): tensor for _, tensor in chosen}
    sums: dict[int, int] = {}
    for device in {tensor.device for tensor in once.values()}:
        here = [key for key, tensor in once.items() if tensor.device == device]
        sums.update(zip(here, torch.stack([_sum(once[key]) for key in here]).tolist(), strict=True))
    for name, tensor in chosen:
        yield name, _text(tensor, sums[id(tensor)])


def _text(tensor: Tensor, total: int) -> str:
    shape = "x".join(str(size) for size in tensor.shape)
    return f"{str(tensor.dtype).removeprefix('torch.')} {shape} {total & 0xFFFFFFFFFFFFFFFF:016x}"


def _is_whole(parameter: Tensor) -> bool:
    """Whether this rank holds all of the weight, in ordinary memory."""
    spread = isinstance(parameter, DTensor) or hasattr(parameter, "ds_id")  # the latter is DeepSpeed's ZeRO-3
    return parameter.layout is torch.strided and not (parameter.is_meta or spread)


@torch.no_grad()
def _sum(tensor: Tensor) -> Tensor:
    """Sum of the words times odd factors that depend on their place, modulo 2**64, shape ()."""
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    whole = len(data) // 8 * 8
    total = torch.zeros((), dtype=torch.int64, device=data.device)
    factors = torch.arange(1, 2 * min(_CHUNK, whole // 8 + 1), 2, dtype=torch.int64, device=data.device)
    words = data[:whole] if data.storage_offset() % 8 == 0 else data[:whole].clone()
    for chunk in torch.split(words.view(torch.int64), _CHUNK):
        total = total * _MIX + (chunk * factors[: len(chunk)]).sum()
    rest = torch.zeros(8, dtype=torch.uint8, device=data.device)
    rest[: len(data) - whole] = data[whole:]
    return total * _MIX + rest.view(torch.int64)[0]
