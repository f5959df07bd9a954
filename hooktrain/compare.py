"""Comparison of plain values, as of runs, states or recipes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["differences", "digest"]


def differences(one: Any, two: Any, where: str = "", names: tuple[str, str] = ("one", "the other")) -> Iterator[str]:
    """Return where two values differ bit by bit, and how; nothing for equal ones.

    Args:
        one: numbers, text, tensors, and mappings and sequences of them; NaN equals NaN.
        two: the same.
        where: the place that they come from.
        names: what to call the two, where something is only in one of them.

    Yields:
        Sentences such as ``step 3, loss: 1.5 and 1.25`` or ``head.weight: up to 0.001 apart``.
    """
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        for key in dict.fromkeys([*one, *two]):
            path = f"{where}, {key}" if where else str(key)
            if key in one and key in two:
                yield from differences(one[key], two[key], path, names)
            else:
                yield f"{path}: only in {names[0] if key in one else names[1]}"
    elif isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)) and len(one) == len(two):
        for number, (left, right) in enumerate(zip(one, two, strict=True)):
            yield from differences(left, right, f"{where}[{number}]", names)
    elif isinstance(one, Tensor) and isinstance(two, Tensor):
        if one.shape != two.shape or one.dtype != two.dtype:
            yield f"{where}: {one.dtype} {tuple(one.shape)} and {two.dtype} {tuple(two.shape)}"
        elif _bytes(one) != _bytes(two):
            apart = (one.double() - two.double()).abs().max().item()
            yield f"{where}: up to {apart:.2g} apart"
    elif type(one) is not type(two) or not (one == two or (_is_nan(one) and _is_nan(two))):
        yield f"{where}: {_short(one)} and {_short(two)}"


def digest(value: Any) -> str:
    """Text that is equal for two values, such as the micro-batches of a step, exactly when they are bit by bit."""
    made = hashlib.sha256()

    def add(item: Any) -> None:
        if isinstance(item, Mapping):
            for key in sorted(item, key=str):
                made.update(f"{key}:".encode())
                add(item[key])
        elif isinstance(item, (list, tuple)):
            made.update(f"[{len(item)}]".encode())
            for each in item:
                add(each)
        elif isinstance(item, Tensor):
            made.update(f"{item.dtype}{tuple(item.shape)}".encode() + _bytes(item))
        else:
            made.update(repr(item).encode())

    add(value)
    return made.hexdigest()


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
